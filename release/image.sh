#!/usr/bin/env bash
# image.sh PYTHON BUNDLE: an image, which is a root file system of Debian's python3 and the wheel in dist with [serve], and in it
# a server as docs/serving.md has it: read-only root, a user without rights, no new privileges, no memory that is written and
# executed. It starts, answers, and stops. Needs root, mmdebstrap and curl; downloads about 40 MB into build/image.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1 bundle=$(realpath "$2") place=$(realpath -m "$here/../build/image")
for tool in mmdebstrap unshare setpriv curl; do
    if [ "$(id -u)" -ne 0 ] || ! command -v $tool > /dev/null; then
        echo "SKIPPED the image: needs root and $tool"
        exit 0
    fi
done

root=$place/root
if [ ! -e "$root/usr/bin/python3" ]; then
    mkdir -p "$place"
    mmdebstrap --quiet --variant=minbase --include=python3 "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root"
fi
[[ $(chroot "$root" python3 --version) =~ 3\.[0-9]+ ]]
version=${BASH_REMATCH[0]} machine=$(uname -m)
rm -rf "$root/opt/weightpager"
"$python" -m pip install --quiet --no-compile --target "$root/opt/weightpager" --only-binary :all: \
    --python-version "$version" \
    --platform "manylinux_2_28_$machine" --platform "manylinux_2_27_$machine" --platform "manylinux2014_$machine" \
    "$("$here/fitting.sh" "$version" "$machine")[serve]"
mkdir -p "$root"/{bundles/assistant.bundle,state}
echo "image: $(du -sm "$root" | cut -f1) MB, of which /opt/weightpager $(du -sm "$root/opt/weightpager" | cut -f1) MB"

# What a unit's MemoryDenyWriteExecute does.
serve='import ctypes
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0, "no PR_SET_MDWE"
from weightpager.cli import main; main()'
export root bundle serve
: > "$place/said"
# Mounts are the server's own, and gone with it.
unshare --mount bash -euc '
    mount --bind "$root" "$root"
    mount --bind -o ro "$bundle" "$root/bundles/assistant.bundle"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=1777 tmpfs "$root/state"
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    mount -o remount,bind,ro "$root"
    exec chroot "$root" setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs \
        env -i PATH=/usr/bin HOME=/nonexistent PYTHONPATH=/opt/weightpager PYTHONDONTWRITEBYTECODE=1 \
        python3 -c "$serve" serve /bundles/assistant.bundle --budget 4MiB --history /state/history --port 0
' > "$place/said" 2> "$place/log" &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
until read -r address _ < "$place/said"; do
    kill -0 $server 2> /dev/null || { cat "$place/log" >&2; exit 1; }
    sleep 0.2
done
curl --fail --silent --show-error --max-time 60 --retry 9 --retry-connrefused "${address}v1/classifications" \
    -H 'Content-Type: application/json' -d '{"model": "animal", "input": ["cat cat", "dog dog"]}'
echo
kill -TERM $server
wait $server
echo "image: started, answered, stopped with 0"
