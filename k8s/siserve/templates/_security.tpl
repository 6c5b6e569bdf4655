{{- /* A probe: liveness or readiness. Kubernetes cannot ask gRPC through TLS. */ -}}
{{- define "siserve.probe" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- if $root.Values.tls.enabled -}}
httpGet:
  port: metrics
  path: {{ ternary "/livez" "/readyz" (eq $service "liveness") }}
{{- else -}}
grpc:
  port: {{ $root.Values.ports.grpc }}
  service: {{ $service }}
{{- end -}}
{{- end -}}

{{- /* What the server reads from Secrets: as "volumes", or as "mounts" of them. */ -}}
{{- define "siserve.secrets" -}}
{{- $values := (index . 0).Values -}}
{{- $secrets := dict -}}
{{- if $values.tls.enabled -}}
{{- $_ := set $secrets "tls" $values.tls.secretName -}}
{{- end -}}
{{- with $values.tls.clientCASecretName -}}
{{- $_ := set $secrets "clients" . -}}
{{- end -}}
{{- with $values.keys.secretName -}}
{{- $_ := set $secrets "keys" . -}}
{{- end -}}
{{- $what := index . 1 -}}
{{- range $name, $secret := $secrets }}
- name: {{ $name }}
  {{- if eq $what "volumes" }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
  {{- else }}
  mountPath: /etc/siserve/{{ $name }}
  readOnly: true
  {{- end }}
{{- end }}
{{- end -}}
