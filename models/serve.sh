#!/bin/sh
# Serves a checkpoint by its name on a model hub: fetches it, exports it, and serves it with an empty collection `default`.
#   models/serve.sh hf://OWNER/NAME[@REVISION][/FILE] PROGRAMS ADDRESS:PORT [DATA_DIR]
set -eu
model=$1
programs=$2
listen=$3
# Letters, digits, `-`, `_` and `.` of NAME are those that the server takes.
name=$(printf '%s' "$model" | sed -E 's#^[Hh][Ff]://(models/)?[^/]+/([^@/]+).*$#\2#')
# Other weights have a folder and collections of their own.
place=$(printf '%s' "$model" | sed -E 's#^[Hh][Ff]://##; s#[^A-Za-z0-9_.-]+#--#g')
folder=.cache/models/$place
data=${4:-.cache/serve/$place}
mkdir -p .cache/models "$data"
"$programs/dino-train" export --checkpoint "$model" --out "$folder" --if-changed

"$programs/dino-server" serve --model "$name=$folder" --data-dir "$data" --listen "$listen" &
server=$!
trap 'kill "$server" 2>/dev/null' INT TERM
# The collection as soon as the server is ready; one that is there already stays as it is.
python3 - "$listen" "$server" <<'PYTHON' || true
import os, sys, time, urllib.error, urllib.request

address, server = "http://" + sys.argv[1], int(sys.argv[2])
while os.path.exists(f"/proc/{server}"):
    try:
        urllib.request.urlopen(address + "/readyz").close()
        request = urllib.request.Request(address + "/collections/default", b"{}", {"Content-Type": "application/json"}, method="PUT")
        urllib.request.urlopen(request).close()
        break
    except urllib.error.HTTPError as error:
        if error.code != 503:
            sys.exit(f"the collection `default` was not made: {error.read().decode()}")
    except urllib.error.URLError:
        pass
    time.sleep(0.2)
PYTHON
# A signal ends `wait` and not the server, which finishes its requests first.
status=0
while kill -0 "$server" 2>/dev/null; do
    wait "$server" && status=0 || status=$?
done
exit "$status"
