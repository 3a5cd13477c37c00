{{- define "dino.name" -}}
{{- if contains "dino" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-dino" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "dino.labels" -}}
{{ include "dino.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "dino.selector" -}}
app.kubernetes.io/name: dino-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* An image by its digest, else by its tag. */}}
{{- define "dino.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}{{ else }}{{ .image.repository }}:{{ .image.tag | default .default }}{{ end }}
{{- end }}

{{- define "dino.weights" -}}
{{- range .Values.models }}{{ if .weights }}true{{ end }}{{ end }}
{{- end }}

{{- define "dino.fromHub" -}}
{{- range .Values.models }}{{ if or .weights (hasPrefix "hf://" (.path | default "")) }}true{{ end }}{{ end }}
{{- end }}

{{/* NAME=PATH of each model, with commas between. */}}
{{- define "dino.models" -}}
{{- $models := list }}
{{- range .Values.models }}
{{- if and .path .weights }}{{ fail (printf "model %s: give `path` or `weights`, not both" .name) }}{{ end }}
{{- $path := .path }}
{{- if .weights }}{{ $path = printf "/hub/exported/%s" .name }}{{ end }}
{{- if not $path }}{{ fail (printf "model %s: give `path` or `weights`" .name) }}{{ end }}
{{- $models = append $models (printf "%s=%s" .name $path) }}
{{- end }}
{{- if not $models }}{{ fail "give at least one model in `models`" }}{{ end }}
{{- join "," $models }}
{{- end }}

{{- define "dino.hubEnvironment" -}}
{{- with .Values.hub.endpoint }}
- { name: HF_ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- with .Values.hub.tokenSecret }}{{ if .name }}
- { name: HF_TOKEN, valueFrom: { secretKeyRef: { name: {{ .name | quote }}, key: {{ .key | quote }} } } }
{{- end }}{{ end }}
{{- end }}

{{- define "dino.environment" -}}
{{- include "dino.hubEnvironment" . }}
{{- with .Values.index.postgres }}{{ if .url }}
- { name: DINO_INDEX, value: {{ .url | quote }} }
{{- with .passwordSecret }}{{ if .name }}
- { name: PGPASSWORD, valueFrom: { secretKeyRef: { name: {{ .name | quote }}, key: {{ .key | quote }} } } }
{{- end }}{{ end }}
{{- end }}{{ end }}
{{- end }}

{{- define "dino.portOf" -}}
{{- (urlParse .url).host | regexFind ":[0-9]+$" | trimPrefix ":" | default (ternary "80" .default (hasPrefix "http://" .url)) }}
{{- end }}

{{/* A value as text. Numbers of values.yaml are floats, which toString writes as 5e+07. */}}
{{- define "dino.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* Cores as a number: "2", "1500m". */}}
{{- define "dino.cores" -}}
{{- $cores := toString . }}
{{- if hasSuffix "m" $cores }}{{ div (trimSuffix "m" $cores | int) 1000 }}{{ else }}{{ int (float64 $cores) }}{{ end }}
{{- end }}

{{- define "dino.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* The pod of a deployment: .root, .component, and .claim, the volume with the data folder, or nothing. */}}
{{- define "dino.pod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "dino.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  annotations:
    # New settings are a new pod.
    checksum/settings: {{ include (print .root.Template.BasePath "/settings.yaml") .root | sha256sum }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Longer than DINO_REQUEST_TIMEOUT and 5 seconds, which running requests are given, and the wait before.
  terminationGracePeriodSeconds: 50
  {{- with $values.image.pullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: { type: RuntimeDefault }
  {{- if not .claim }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "dino.selector" .root | nindent 10 }}
          app.kubernetes.io/component: {{ .component }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{ toJson . }}
  {{- end }}
  {{- with concat $values.tolerations (ternary $values.gpu.tolerations list $values.gpu.enabled) }}
  tolerations: {{ toJson . }}
  {{- end }}
  {{- if include "dino.weights" .root }}
  initContainers:
    {{- range $number, $model := $values.models }}{{ with $model }}{{ if .weights }}
    # Ends at once where the volume holds a model of these weights.
    - name: export-{{ $number }}
      image: {{ include "dino.image" (dict "image" $values.trainImage "default" $.root.Chart.AppVersion) }}
      imagePullPolicy: {{ $values.trainImage.pullPolicy }}
      args:
        - export
        - --checkpoint={{ .weights }}
        - --out=/hub/exported/{{ .name }}
        - --if-changed
        {{- range .precisions | default (list "f32") }}
        - --precision={{ . }}
        {{- end }}
      {{- with include "dino.hubEnvironment" $.root | trim }}
      env: {{- . | nindent 8 }}
      {{- end }}
      resources: {{ toJson (dict "requests" $values.resources.requests "limits" $values.resources.limits) }}
      securityContext: {{- include "dino.containerSecurity" $.root | nindent 8 }}
      volumeMounts:
        - { name: hub, mountPath: /hub }
        - { name: scratch, mountPath: /tmp }
        {{- if $values.modelVolume.existingClaim }}
        - { name: models, mountPath: /models, readOnly: true }
        {{- end }}
    {{- end }}{{ end }}{{ end }}
  {{- end }}
  containers:
    - name: server
      image: {{ include "dino.image" (dict "image" $values.image "default" (ternary (printf "%s-cuda" .root.Chart.AppVersion) .root.Chart.AppVersion $values.gpu.enabled)) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      envFrom: [{ configMapRef: { name: {{ include "dino.name" .root }} } }]
      {{- with include "dino.environment" .root | trim }}
      env: {{- . | nindent 8 }}
      {{- end }}
      ports: [{ name: http, containerPort: 8080 }]
      # A large collection is read, checked and indexed, and models by name are fetched, before the server answers.
      startupProbe:
        httpGet: { path: /readyz, port: http }
        periodSeconds: 5
        failureThreshold: {{ mul 12 $values.hub.startupMinutes }}
      readinessProbe:
        httpGet: { path: /readyz, port: http }
        periodSeconds: 5
        timeoutSeconds: 3
      # Not /readyz: a database that is away, or a disk that is full, is no reason to restart.
      livenessProbe:
        httpGet: { path: /healthz, port: http }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 12
      # Load balancers go on sending for a moment after a pod is told to end.
      lifecycle: { preStop: { sleep: { seconds: 5 } } }
      resources:
        requests: {{ toJson $values.resources.requests }}
        {{- $gpu := ternary (dict $values.gpu.resource "1") dict $values.gpu.enabled }}
        limits: {{ toJson (merge $gpu $values.resources.limits) }}
      securityContext: {{- include "dino.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - { name: data, mountPath: /data }
        - { name: hub, mountPath: /hub }
        {{- if $values.modelVolume.existingClaim }}
        - { name: models, mountPath: /models, readOnly: true }
        {{- end }}
        {{- if $values.apiKeys.secretName }}
        - { name: keys, mountPath: /keys, readOnly: true }
        {{- end }}
  volumes:
    - name: data
      {{- if .claim }}
      persistentVolumeClaim: { claimName: {{ .claim }} }
      {{- else }}
      # Snapshots on their way, and nothing that lasts.
      emptyDir: {}
      {{- end }}
    - name: hub
      {{- if $values.hub.existingClaim }}
      persistentVolumeClaim: { claimName: {{ $values.hub.existingClaim }} }
      {{- else }}
      emptyDir: { sizeLimit: {{ $values.hub.sizeLimit }} }
      {{- end }}
    {{- if include "dino.weights" .root }}
    - name: scratch
      emptyDir: {}
    {{- end }}
    {{- if $values.modelVolume.existingClaim }}
    - name: models
      persistentVolumeClaim: { claimName: {{ $values.modelVolume.existingClaim }}, readOnly: true }
    {{- end }}
    {{- if $values.apiKeys.secretName }}
    - name: keys
      secret: { secretName: {{ $values.apiKeys.secretName }}, items: [{ key: {{ $values.apiKeys.key }}, path: keys }] }
    {{- end }}
{{- end }}

{{/* The component whose pods may be several. */}}
{{- define "dino.scaled" -}}
{{- ternary "collections" "embed" (ne .Values.index.postgres.url "") }}
{{- end }}

{{/* Its deployment's name. */}}
{{- define "dino.scaledName" -}}
{{- ternary (include "dino.name" .) (printf "%s-embed" (include "dino.name" .)) (ne .Values.index.postgres.url "") }}
{{- end }}
