#!/usr/bin/env bash
# TensorFlow Serving without Docker, with the flags of docker-compose.yml.
#
#   deploy/tfserving.sh [REPOSITORY [FLAG…]]
#
# REPOSITORY is model_repository if not given. `blockserve build` has left the
# configuration there; the paths of its models are made to lead there. A later
# flag wins over an earlier one: --port=9500, say. Models and labels that are new since
# the start need another one; new versions of a model without labels do not.
set -euo pipefail

repository=$(realpath "${1:-model_repository}")
shift || true
for file in models.config monitoring.config; do
	if [[ ! -f $repository/$file ]]; then
		echo "$0: no $file in $repository; blockserve build writes it" >&2
		exit 1
	fi
done
if ! command -v tensorflow_model_server >/dev/null; then
	echo "$0: tensorflow_model_server is not on the PATH" >&2
	exit 127
fi

# A file without a name: it goes when the server does.
models=$(mktemp)
while IFS= read -r line; do
	if [[ $line =~ ^(.*base_path:\ \").*/([^/]+)\"$ && -d $repository/${BASH_REMATCH[2]} ]]; then
		line="${BASH_REMATCH[1]}$repository/${BASH_REMATCH[2]}\""
	fi
	printf '%s\n' "$line"
done <"$repository/models.config" >"$models"
exec 3<"$models"
rm "$models"

export TF_FORCE_GPU_ALLOW_GROWTH=${TF_FORCE_GPU_ALLOW_GROWTH:-true}
exec tensorflow_model_server \
	--port=8500 \
	--rest_api_port=8501 \
	--model_config_file=/proc/self/fd/3 \
	--allow_version_labels_for_unavailable_models=true \
	--monitoring_config_file="$repository/monitoring.config" \
	--grpc_max_threads=64 \
	"$@"
