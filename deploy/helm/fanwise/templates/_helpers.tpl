{{- define "fanwise.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "fanwise.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fanwise.labels" -}}
{{ include "fanwise.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The pod of a role. Call it with (list $ role values). */}}
{{- define "fanwise.pod" -}}
{{- $root := index . 0 }}{{ $role := index . 1 }}{{ $its := index . 2 -}}
{{- $values := $root.Values -}}
metadata:
  labels:
    {{- include "fanwise.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with $values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # A changed configuration replaces the pods.
    checksum/config: {{ $values.config | sha256sum }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "fanwise.name" $root }}
  automountServiceAccountToken: false
  # Otherwise the cluster sets FANWISE_PORT and the like, which read as settings.
  enableServiceLinks: false
  {{- with $values.imagePullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add $values.drainDeadlineSeconds 15 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "fanwise.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $role }}
    {{- end }}
  containers:
    - name: fanwise
      image: "{{ $values.image.repository }}:{{ $values.image.tag | default $root.Chart.AppVersion }}"
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [{{ $role }}]
      env:
        - name: FANWISE_CONFIG
          value: /etc/fanwise/fanwise.toml
        - name: FANWISE_WORKER__DRAIN_DEADLINE
          value: {{ printf "%vs" $values.drainDeadlineSeconds }}
        {{- with $values.env }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        - name: admin
          containerPort: 9600
        {{- if ne $role "worker" }}
        - name: http
          containerPort: 9700
        {{- end }}
      startupProbe:
        httpGet: { path: /livez, port: admin }
        periodSeconds: 2
        failureThreshold: 30
      readinessProbe:
        httpGet: { path: /readyz, port: admin }
        periodSeconds: 5
        timeoutSeconds: 3
      livenessProbe:
        httpGet: { path: /livez, port: admin }
        periodSeconds: 10
        timeoutSeconds: 5
      lifecycle:
        # Meanwhile the cluster takes the pod out of its services.
        preStop:
          exec: { command: [sleep, "5"] }
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      resources: {{ toYaml $its.resources | nindent 8 }}
      volumeMounts:
        - { name: config, mountPath: /etc/fanwise, readOnly: true }
        - { name: secrets, mountPath: /run/secrets/fanwise, readOnly: true }
        - { name: data, mountPath: /data }
        - { name: tmp, mountPath: /tmp }
  volumes:
    - name: config
      configMap:
        name: {{ include "fanwise.name" $root }}
    - name: secrets
      secret:
        secretName: {{ $values.existingSecret }}
        defaultMode: 0440
    - name: tmp
      emptyDir: { sizeLimit: 64Mi }
    {{- if ne $role "serve" }}
    - name: data
      emptyDir: { sizeLimit: {{ $its.uploadSize | default "64Mi" }} }
    {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Metadata of an object. Call it with (list $ suffix); the suffix can be empty. */}}
{{- define "fanwise.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "fanwise.name" $root }}{{ with index . 1 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "fanwise.labels" $root | nindent 2 }}
{{- end }}
