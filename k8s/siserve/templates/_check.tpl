{{- /* Refuses values that are right alone and wrong together. */ -}}
{{- define "siserve.check" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "image") (or $model.paths $model.watch) -}}
{{- fail "model.paths and model.watch are for bundles outside the image; set model.source to pvc, oci or download, or leave them empty" -}}
{{- end -}}
{{- if and (ne $model.source "image") (not (or $model.paths $model.watch)) -}}
{{- printf "model.source is %s: expected model.paths or model.watch to name a folder in it, got none" $model.source | fail -}}
{{- end -}}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) -}}
{{- fail "model.source is pvc: expected model.pvc.claimName, got none" -}}
{{- end -}}
{{- if eq $model.source "oci" -}}
{{- if not $model.oci.reference -}}
{{- fail "model.source is oci: expected model.oci.reference, got none" -}}
{{- end -}}
{{- if semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version -}}
{{- printf "model.source is oci: expected Kubernetes 1.31 or later, got %s; take download or pvc" .Capabilities.KubeVersion.Version | fail -}}
{{- end -}}
{{- end -}}
{{- if and (eq $model.source "download") (not (and $model.download.url $model.download.sha256)) -}}
{{- fail "model.source is download: expected model.download.url and model.download.sha256" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) -}}
{{- fail "tls.enabled: expected tls.secretName, got none" -}}
{{- end -}}
{{- if and .Values.tls.clientCASecretName (not .Values.tls.enabled) -}}
{{- fail "tls.clientCASecretName asks clients for certificates, which takes tls.enabled" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled would both scale the pods; enable one" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.metric "cpu") (not (get .Values.resources.requests "cpu")) -}}
{{- fail "autoscaling.metric is cpu: expected resources.requests.cpu, got none" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled: expected ingress.host, got none" -}}
{{- end -}}
{{- if and .Values.route.enabled (not .Values.route.parentRefs) -}}
{{- fail "route.enabled: expected a Gateway in route.parentRefs, got none" -}}
{{- end -}}
{{- end -}}
