{{- define "siserve.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "siserve.serverLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "siserve.testLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end -}}

{{- /* Labels of an object: those of its part, what changes with a release, and the user's. */ -}}
{{- define "siserve.labels" -}}
{{- $own := include "siserve.serverLabels" . | fromYaml -}}
{{- $release := dict
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- merge $own $release .Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "siserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "siserve.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "siserve.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- $suffix := ternary "-cuda" "" .Values.gpu.enabled -}}
{{- printf "%s:%s" .Values.image.repository (default (print .Chart.AppVersion $suffix) .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Time from a pod's end to its kill. Beside preStop and drain the server needs half a second to
tell balancers and to close streams, and some time to leave. */ -}}
{{- define "siserve.terminationGracePeriodSeconds" -}}
{{- $needed := add .Values.drain.preStopSeconds .Values.drain.seconds 2 -}}
{{- $given := .Values.drain.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- add $needed 3 -}}
{{- else if lt (int64 $given) (int64 $needed) -}}
{{- printf "drain.terminationGracePeriodSeconds is %d: calls would be killed; expected at least %d, preStopSeconds + seconds + 2, or null" (int64 $given) $needed | fail -}}
{{- else -}}
{{- int64 $given -}}
{{- end -}}
{{- end -}}

{{- /* Where clients in the cluster call; with TLS by the name that is in the certificate. */ -}}
{{- define "siserve.address" -}}
{{- $name := printf "%s.%s.svc" (include "siserve.fullname" .) .Release.Namespace -}}
{{- printf "%s:%v" (default $name .Values.tls.serverName) .Values.service.port -}}
{{- end -}}
