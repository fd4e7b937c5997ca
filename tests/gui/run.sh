#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs the add-on in a real Blender window, measures whether the window stays free, and takes the documentation's pictures.
#
#   PYTHON=~/lim/backend/bin/python tests/gui/run.sh OUT
#
# Needs Linux, Xvfb and ImageMagick. Takes some minutes; exit code 0 if every check passed. What comes out:
#   OUT/report.json               ticks of a timer during Generate, the add-on's own time per step, what was checked
#   OUT/panel.png running.png result.png cancelled.png video_views.png video_result.png
#   OUT/blender.log               what Blender printed
# Set in the environment:
#   PYTHON    the backend's Python; the installed backend's, or any that can run lim_core (required)
#   WEIGHTS   folder of the checkpoints; default: the ones in lim_core/weights
#   VIEWS     folder of the pipeline for a video's views; default: the one in lim_core/weights (without any: no video)
#   BLENDER   Blender's program; default: blender
#   CHROOT    a folder with a Linux that holds Blender, to run it in there (needs root); default: none. What Blender needs
#             from outside is mounted in a mount namespace of its own, and is gone with the script. Made for example by
#               debootstrap --variant=minbase trixie DIR
#               chroot DIR apt-get install -y --no-install-recommends blender libgl1-mesa-dri libegl1 libgl1 python3-numpy
#   SIZE      the window's size; default: 1280x800
#   ONLY      video: that part alone; default: everything
#   QUALITY   draft, standard (default) or high
#   LIMIT     seconds after which it is given up; default: 1200
set -euo pipefail

HERE=$(dirname "$(realpath "$0")")
ROOT=$(realpath "$HERE/../..")
[ $# = 1 ] || { sed -n '3,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
: "${PYTHON:?name the Python of the backend}"
if [ -n "${CHROOT:-}" ] && [ -z "${LIM_GUI_INSIDE:-}" ]; then
  LIM_GUI_INSIDE=1 exec unshare --mount --propagation private "$0" "$@"
fi

mkdir -p "$1"
OUT=$(realpath "$1")
PYTHON=$(realpath --no-symlinks "$PYTHON")
WEIGHTS=${WEIGHTS:+$(realpath "$WEIGHTS")}
VIEWS=${VIEWS:+$(realpath "$VIEWS")}
SIZE=${SIZE:-1280x800}
WORK=$(mktemp -d)
LOG=$OUT/blender.log
blender_process='' server=''
leave() {
  [ -z "$blender_process" ] || kill "$blender_process" 2>/dev/null || true
  [ -z "$server" ] || { sleep 0.5; kill "$server" 2>/dev/null || true; }
  rm -rf "$WORK"
}
trap leave EXIT

exec 9>"$WORK/display"
Xvfb -displayfd 9 -screen 0 "${SIZE}x24" +extension GLX -nolisten tcp 2>/dev/null &
server=$!
for _ in $(seq 100); do [ -s "$WORK/display" ] && break; sleep 0.1; done
DISPLAY=:$(cat "$WORK/display")
export DISPLAY

run=(env "BLENDER_USER_RESOURCES=$WORK/resources" "LIM_GUI_OUT=$OUT" "LIM_GUI_WORK=$WORK" "LIM_GUI_PYTHON=$PYTHON"
     "LIM_GUI_WEIGHTS=$WEIGHTS" "LIM_GUI_VIEWS=$VIEWS" "LIM_GUI_QUALITY=${QUALITY:-standard}"
     "LIM_GUI_ONLY=${ONLY:-}" "${BLENDER:-blender}")
if [ -n "${CHROOT:-}" ]; then
  CHROOT=$(realpath "$CHROOT")
  show() { mkdir -p "$CHROOT$1"; mount --rbind "$1" "$CHROOT$1"; }
  mount -t proc proc "$CHROOT/proc"
  show /dev
  show /tmp/.X11-unix
  show "$WORK"
  show "$OUT"
  show "$ROOT"
  [ -z "$WEIGHTS" ] || show "$WEIGHTS"
  [ -z "$VIEWS" ] || show "$VIEWS"
  "$PYTHON" -I -c 'import sys; print(*dict.fromkeys((sys.prefix, sys.base_prefix)), sep="\n")' >"$WORK/prefixes"
  while read -r prefix; do
    case $prefix in /usr | /) ;; *) show "$prefix" ;; esac
  done <"$WORK/prefixes"
  run=(chroot "$CHROOT" "${run[@]}")
fi

"${run[@]}" --command extension build --source-dir "$ROOT" --output-filepath "$WORK/lim.zip" >"$LOG" 2>&1
"${run[@]}" --command extension install-file -r user_default "$WORK/lim.zip" >>"$LOG" 2>&1
"${run[@]}" --factory-startup -p 0 0 "${SIZE%x*}" "${SIZE#*x}" --python "$HERE/window.py" >>"$LOG" 2>&1 &
blender_process=$!

# window.py asks for a picture with a file WORK/NAME.wanted, and waits until the file is gone.
end=$((SECONDS + ${LIMIT:-1200}))
while kill -0 "$blender_process" 2>/dev/null && [ $SECONDS -lt $end ]; do
  for wanted in "$WORK"/*.wanted; do
    [ -e "$wanted" ] || continue
    name=$(basename "$wanted" .wanted)
    import -window root -strip -define png:compression-level=9 "$OUT/$name.png"
    rm "$wanted"
  done
  sleep 0.1
done
if kill -0 "$blender_process" 2>/dev/null; then
  echo "Given up after ${LIMIT:-1200} s; see $LOG" >&2
  exit 1
fi
code=0
wait "$blender_process" || code=$?
blender_process=''
[ -s "$OUT/report.json" ] || { tail -n 20 "$LOG" >&2; exit 1; }
cat "$OUT/report.json"
exit "$code"
