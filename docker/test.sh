#!/usr/bin/env bash
# Builds the image and tries it as compose.yaml starts it, with a limit of memory and processor time:
#   docker/test.sh [further compose files]
# Needs a Docker engine with Compose 2, curl, and the ports 8000 and 9090. Everything it starts is removed at the end,
# and nothing of an installed Lorry is touched.
set -euo pipefail
cd "$(dirname "$0")/.."

limits=$(mktemp --suffix .yaml)
cat >"$limits" <<'YAML'
services:
  lorry:
    mem_limit: 2g
    memswap_limit: 2g
    cpus: 2
YAML
files=(--file docker/compose.yaml --file "$limits")
for file in "$@"; do files+=(--file "$file"); done
compose() { docker compose --project-name lorry-test "${files[@]}" "$@"; }
server=http://127.0.0.1:8000

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    compose logs --tail 40 lorry >&2
    exit 1
}
cleanup() {
    compose down --volumes --timeout 5 >/dev/null 2>&1 || true
    rm -f "$limits"
}
trap cleanup EXIT

container() { compose ps --all --quiet lorry; }
state() { docker inspect --format "{{$1}}" "$(container)"; }
healthy() {
    for _ in $(seq 900); do
        [ "$(state .State.Health.Status)" = healthy ] && return
        [ "$(state .State.Running)" = true ] || fail "the container stopped with $(state .State.ExitCode)"
        sleep 2
    done
    fail "not healthy in half an hour"
}
generate() {
    curl --silent --show-error --fail "$server/generate" --header 'content-type: application/json' \
        --data "{\"inputs\": \"How do I cook rice?\", \"adapter\": \"$1\", \"parameters\": {\"max_new_tokens\": 8}}"
}

say build
compose build
say start
compose up --detach
healthy

say 'it is not root, and may write only to its volumes'
[ "$(docker exec "$(container)" id -u)" = 10001 ] || fail "it is root"
docker exec "$(container)" sh -c 'touch /data/adapters.test && rm /data/adapters.test' || fail "/data is read only"
if docker exec "$(container)" sh -c 'touch /opt/lorry/test' 2>/dev/null; then fail "the image can be written to"; fi

say 'every line of its log is JSON'
plain=$(docker logs "$(container)" 2>&1 | grep --invert-match '^{' || true)
[ -z "$plain" ] || fail "not JSON: $plain"

say 'an adapter is uploaded and answers'
docker exec "$(container)" lorry adapters list >/dev/null || fail "the command line does not reach the server"
curl --silent --show-error --fail "$server/adapters" --form name=uploaded \
    --form adapter_config.json=@adapters/samples/pirate/adapter_config.json \
    --form adapter_model.safetensors=@adapters/samples/pirate/adapter_model.safetensors >/dev/null || fail "the upload was refused"
before=$(generate uploaded)

say 'it is still there in a new container'
compose down
compose up --detach
healthy
[ "$(generate uploaded)" = "$before" ] || fail "another answer: $(generate uploaded), not $before"

say 'Prometheus scrapes it'
for _ in $(seq 60); do
    curl --silent 'http://127.0.0.1:9090/api/v1/query?query=up' | grep --quiet '"1"\]' && break
    sleep 2
done
curl --silent 'http://127.0.0.1:9090/api/v1/query?query=up' | grep --quiet '"1"\]' || fail "it is not scraped"
curl --silent http://127.0.0.1:9090/api/v1/rules | grep --quiet '"LorryNotReady"' || fail "Prometheus has no alerts"

say 'a running stream ends before the server does'
answer=$(mktemp)
curl --silent --no-buffer "$server/generate_stream" --header 'content-type: application/json' \
    --data '{"inputs": "Once", "parameters": {"max_new_tokens": 400, "ignore_eos_token": true, "details": true}}' >"$answer" &
stream=$!
until [ -s "$answer" ]; do sleep 0.1; done
compose stop lorry
wait "$stream" || fail "the stream broke off"
grep --quiet '"finish_reason"' "$answer" || fail "the stream has no end: $(tail -c 300 "$answer")"
rm "$answer"
[ "$(state .State.ExitCode)" = 0 ] || fail "it stopped with $(state .State.ExitCode)"

say 'SIGTERM while it starts ends it'
compose start lorry
compose stop --timeout 20 lorry
[ "$(state .State.ExitCode)" != 137 ] || fail "it had to be killed"
say passed
