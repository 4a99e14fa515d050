{{- define "backstay.labels" -}}
app.kubernetes.io/name: backstay-operator
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: backstay
{{ include "backstay.release" . }}
{{- end -}}

{{- /* What Helm's own habits ask for, and the kustomize base does not have. */ -}}
{{- define "backstay.release" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "backstay.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end -}}
{{- end -}}

{{- /* Namespaces no webhook of ours may touch, whatever their labels say. */ -}}
{{- define "backstay.excluded" -}}
{{- concat (list .Values.namespace.name "kube-system" "kube-public" "kube-node-lease") .Values.webhook.excludedNamespaces | toJson -}}
{{- end -}}
