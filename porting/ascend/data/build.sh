#!/usr/bin/env bash
# Compiles model.onnx for @SOC@ with atc of Huawei's CANN. README.txt says what is needed.
# Exit code 0: there is a .om; 1: atc ended with an error, and atc.log says why; 2: used wrongly, or files are not those handed over; 3: no CANN here;
# 4: atc reported no failure and made no .om; 5: it made several; 6: it made an empty one; 128 + n: signal n ended atc.
set -euo pipefail

fail() { # exit code, what, next
    printf 'error: %s\n  next:  %s\n' "$2" "$3" >&2
    exit "$1"
}

[[ $# -eq 0 ]] || fail 2 "build.sh takes no arguments" "change the command in a new port: this one is recorded in handoff.json"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$here" # every path below is relative: atc is documented for plain paths only, and this folder may lie anywhere

# --- the files: those that were handed over ---

changed=$(sha256sum --check --quiet --strict -- files.sha256 2>/dev/null) || # what it prints are the files that differ
    fail 2 "files are not those that were handed over: ${changed//$'\n'/, }" "copy the folder anew, or make a new port: what is changed here was never compared"

exec 9<. # held until all that is started here has ended
if command -v flock >/dev/null; then
    locked=0
    flock -n -E 75 9 2>/dev/null || locked=$? # another number: this file system has no locks
    [[ $locked -ne 75 ]] || fail 2 "another build.sh is at work in this folder" "wait for it, or end it"
fi

# --- the environment: CANN's own, never that of a virtual environment ---

unset PYTHONHOME
if [[ -n ${VIRTUAL_ENV:-} ]]; then
    search=":$PATH:"
    search=${search//":$VIRTUAL_ENV/bin:"/:}
    search=${search#:}
    PATH=${search%:}
    unset VIRTUAL_ENV
fi

set_env_of() { # root of a CANN -> its set_env.sh
    local file
    for file in "$1/set_env.sh" "$1/../set_env.sh"; do
        if [[ -f $file ]]; then
            printf '%s\n' "$file"
            return 0
        fi
    done
    return 1
}

environment=""
if [[ -n ${ASCEND_HOME_PATH:-} ]]; then
    environment=$(set_env_of "$ASCEND_HOME_PATH") || environment=""
elif ! command -v atc >/dev/null; then
    for root in /usr/local/Ascend/cann /usr/local/Ascend/ascend-toolkit/latest \
        "${HOME:-/nowhere}/Ascend/cann" "${HOME:-/nowhere}/Ascend/ascend-toolkit/latest"; do
        if environment=$(set_env_of "$root"); then
            break
        fi
    done
fi
if [[ -n $environment ]]; then
    unset PYTHONPATH
    set +eu # the vendor's script reads variables that are not set
    # shellcheck disable=SC1090
    source "$environment"
    set -eu
fi
if [[ -n ${CANN_PYTHON:-} ]]; then
    [[ -x $CANN_PYTHON/python3 ]] || fail 2 "CANN_PYTHON is $CANN_PYTHON, and no python3 lies there" "name the folder that holds python3"
    export PATH="$CANN_PYTHON:$PATH"
    export LD_LIBRARY_PATH="$CANN_PYTHON/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
command -v atc >/dev/null || fail 3 "atc was not found: searched PATH, ASCEND_HOME_PATH and the places where CANN installs itself" \
    "run this on a machine with the CANN toolkit and the ops package for @SOC@, or set ASCEND_HOME_PATH to where they are"

home=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}
devlib="$home/$(uname -m)-linux/devlib"
if [[ -n $home && -d $devlib && ! -e /dev/davinci_manager ]]; then # no driver here: its libraries come from the toolkit
    export LD_LIBRARY_PATH="$devlib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
export ASCEND_SLOG_PRINT_TO_STDOUT=1 ASCEND_LOG_PRINT_TO_STDOUT=1 # so that atc.log holds the reasons; older and newer name

# --- the compilation ---

rm -rf -- atc.log model.om model_linux_*.om model_weight_combined* weight model.om.sha256 # what an earlier run left proves nothing
{
    printf 'atc: %s\n' "$(command -v atc)"
    printf 'python3: %s\n' "$(command -v python3 || printf 'none: the operators of CANN are compiled with Python')"
    python3 -c '
import sys
found = ["python " + sys.version.split()[0]]
for name in ("numpy", "google.protobuf", "scipy", "decorator", "attr", "psutil"):
    try:
        found.append(name + " " + str(getattr(__import__(name, fromlist=["_"]), "__version__", "")))
    except Exception:
        found.append("no " + name)
print(", ".join(found))' || true # CANN_PYTHON names another, when atc asks for one of these
    for file in "$home/version.cfg" "$home/compiler/version.info" "$home/share/info/compiler/version.info"; do
        if [[ -f $file ]]; then
            printf '%s:\n' "${file#"$home/"}"
            head -n 20 -- "$file"
        fi
    done
} 2>&1 | tee -- atc.log

set +e
@COMMAND@ 2>&1 | tee -a -- atc.log
ended=("${PIPESTATUS[@]}")
set -e
status=${ended[0]}
explain="porting explain atc.log says what the codes mean"
if [[ $status -gt 128 && $status -le 192 ]]; then
    signal=$((status - 128)) hint=""
    [[ $signal -ne 9 ]] || hint=": out of memory?"
    fail "$status" "atc was killed by signal $signal$hint" "where memory ran out, take a machine with more; $explain"
fi
[[ $status -eq 0 ]] || fail 1 "atc ended with $status" "$explain"
[[ ${ended[1]} -eq 0 ]] || fail 2 "atc.log cannot be written" "make room in this folder, and run again"

made=()
compiled=0
empty=0
for file in model.om model_linux_*.om model_weight_combined* weight/*; do
    if [[ -f $file ]]; then
        made+=("$file")
        if [[ $file == *.om ]]; then
            compiled=$((compiled + 1))
            [[ -s $file ]] || empty=$((empty + 1))
        fi
    fi
done
[[ $compiled -ne 0 ]] || fail 4 "atc reported no failure and made no model" "$explain"
[[ $compiled -eq 1 ]] || fail 5 "atc reported no failure and made $compiled files with .om" "$explain"
[[ $empty -eq 0 ]] || fail 6 "atc reported no failure and made an empty model: no byte in ${made[0]}" "make room on the disk, and run again; $explain"
sha256sum -- "${made[@]}" | tee -- model.om.sha256
