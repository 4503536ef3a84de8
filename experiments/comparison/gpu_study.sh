#!/usr/bin/env bash
# A part of the study on a machine with one GPU that is at hand for minutes and has no network:
#   OUT=results WHEELS=wheels CROPS=lidc64 DATA=data bash experiments/comparison/gpu_study.sh STUDY_ARGUMENTS...
# WHEELS: folder of wheels that the machine's Python lacks; unset: nothing is installed
# CROPS: folder that `crops.py pack` wrote, or one with some of its parts: the calls before the last part only keep them;
#   unset: DATA has lidc_slices.zip, if it is needed
# without STUDY_ARGUMENTS the data are unpacked and nothing else is done
# DATA: folder with bu_bil, chase_db1; EARLIER: folder with finished.txt and search.csv of an earlier part
# JOBS: trainings at a time; OUT gets the tables of all finished runs, and finished.txt for the next part
set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
study=${STUDY:-$top/outputs/gpu_study}
data=$study/data
mkdir -p "$study" "$data" "$OUT"
export PYTHONPATH="$top/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
if [ -n "${WHEELS:-}" ] && [ ! -d "$study/site" ]; then
    # the package itself is imported from its sources, and asks for its own version
    mkdir -p "$study/site/edue_lightning-0.1.0.dist-info"
    printf 'Metadata-Version: 2.1\nName: edue-lightning\nVersion: 0.1.0\n' > "$study/site/edue_lightning-0.1.0.dist-info/METADATA"
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$study/site" "$WHEELS"/*.whl || exit
fi
[ -d "$study/site" ] && export PYTHONPATH="$PYTHONPATH:$study/site"
if [ -n "${CROPS:-}" ] && [ ! -f "$data/lidc_slices.zip" ]; then
    mkdir -p "$study/crops" && cp -r "$CROPS"/. "$study/crops/" || exit
    python3 experiments/comparison/crops.py unpack "$study/crops" "$data/lidc_slices.zip"
    unpacked=$?
    # another part follows
    [ "$unpacked" = 3 ] && exit 0
    [ "$unpacked" = 0 ] || exit "$unpacked"
fi
for part in bu_bil chase_db1; do
    [ -d "${DATA:-}/$part" ] && [ ! -e "$data/$part" ] && cp -r "$DATA/$part" "$data/$part"
done
for file in finished.txt search.csv; do
    [ -f "${EARLIER:-}/$file" ] && [ ! -f "$study/$file" ] && cp "$EARLIER/$file" "$study/"
done
[ $# = 0 ] && exit 0
what=$1
shift
python3 experiments/comparison/study.py "$what" --folder "$study" --data "$data" --device "${DEVICE:-gpu}" \
    --jobs "${JOBS:-14}" --longest-first "$@" 2>&1 | tee -a "$study/study.txt"
status=${PIPESTATUS[0]}
python3 experiments/comparison/study.py pack --folder "$study" --target "$OUT"
[ -f "$study/search.csv" ] && cp "$study/search.csv" "$OUT/"
# the ends of the logs of failed runs
grep -o '^failed: [^,]*' "$study/study.txt" | cut -d' ' -f2 | head -5 | while read -r name; do
    echo "== $name"
    tail -n 15 "$study/$name.log"
done
exit "$status"
