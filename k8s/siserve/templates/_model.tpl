{{- define "siserve.modelVolume" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "pvc" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ $model.pvc.claimName }}
    readOnly: true
{{- else if eq $model.source "oci" -}}
- name: models
  image:
    reference: {{ $model.oci.reference }}
    pullPolicy: {{ $model.oci.pullPolicy }}
{{- else if eq $model.source "download" -}}
- name: models
  emptyDir:
    sizeLimit: {{ $model.download.sizeLimit }}
{{- end }}
{{- end -}}

{{- define "siserve.downloadContainer" -}}
- name: download-model
  image: {{ .Values.model.download.image }}
  command:
    - sh
    - -euc
    - |
      curl --fail --location --silent --show-error --retry 5 --output /models/archive.tar.gz "$URL"
      echo "$SHA256  /models/archive.tar.gz" | sha256sum -c - || {
        echo "the archive at $URL is not the one that model.download.sha256 names" >&2
        exit 1
      }
      tar -xzf /models/archive.tar.gz -C /models
      rm /models/archive.tar.gz
  env:
    - name: URL
      value: {{ .Values.model.download.url | quote }}
    - name: SHA256
      value: {{ .Values.model.download.sha256 | quote }}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 128Mi}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
{{- end -}}

{{- /* The port that the download leaves by. */ -}}
{{- define "siserve.downloadPort" -}}
{{- $url := urlParse .Values.model.download.url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}
