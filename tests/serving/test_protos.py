"""The committed stubs are what protos/ says, and protos/ keeps buf's rules."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from siserve.v1 import admin_pb2, dialog_pb2

ROOT = Path(__file__).parents[2]
COMMITTED = (admin_pb2.DESCRIPTOR, dialog_pb2.DESCRIPTOR)
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: object) -> None:
    done = subprocess.run(
        [BUF, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_stubs_describe_what_the_proto_file_says(tmp_path):
    image = tmp_path / "image.binpb"
    buf("build", "--exclude-source-info", "-o", image)
    compiled = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    described = {file.name: file for file in compiled.file if file.package == "siserve.v1"}
    assert len(described) == len(COMMITTED)
    for descriptor in COMMITTED:
        file = described[descriptor.name]
        fields = [field for message in all_messages(file) for field in message.field]
        for field in fields:
            field.ClearField("json_name")  # written out by buf, left to be derived by protoc
        file.DiscardUnknownFields()  # buf's own remarks
        committed = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(committed)
        assert file == committed


def all_messages(file: descriptor_pb2.FileDescriptorProto) -> list[descriptor_pb2.DescriptorProto]:
    found = list(file.message_type)
    for message in found:
        found += message.nested_type
    return found


@pytest.mark.parametrize("arguments", [("lint",), ("format", "-d", "--exit-code")])
def test_the_proto_file_keeps_the_rules(arguments):
    buf(*arguments)
