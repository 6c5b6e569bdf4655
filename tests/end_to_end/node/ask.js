// Asks a siserve server from Node, knowing nothing but protos/.
// Usage: node ask.js PROTOS_FOLDER ADDRESS REQUEST_JSON
// Prints the reply, or {"code", "details"} of the refusal, as one line of JSON.
"use strict";

const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [protos, address, request] = process.argv.slice(2);
const definition = protoLoader.loadSync("siserve/v1/dialog.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: String, // a seed has 64 bits, more than a JavaScript number holds
  defaults: true,
});
const { DialogService } = grpc.loadPackageDefinition(definition).siserve.v1;
const client = new DialogService(address, grpc.credentials.createInsecure());
const deadline = new Date(Date.now() + 20_000);

client.GenerateResponses(JSON.parse(request), { deadline }, (error, reply) => {
  console.log(JSON.stringify(error ? { code: error.code, details: error.details } : reply));
  client.close();
});
