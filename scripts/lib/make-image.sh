#!/usr/bin/env bash
# make-image.sh DIR OUT.img [SIZE]: packs a folder into an ext4 image, for a guest to mount.
# This is how host files get into a guest: attach OUT.img as a further raw drive. No loop device and no
# mount is involved, and everything belongs to root inside. SIZE (truncate's notation) defaults to what
# the files need plus a quarter plus 16 MiB.
set -euo pipefail

usage() {
    echo "usage: ${0##*/} DIR OUT.img [SIZE]" >&2
    exit 2
}
case $# in 2 | 3) ;; *) usage ;; esac
dir=$1 out=$2
[ -d "$dir" ] || { echo "${0##*/}: $dir is not a folder" >&2; exit 1; }
PATH=$PATH:/usr/sbin:/sbin
command -v mkfs.ext4 >/dev/null || { echo "${0##*/}: need mkfs.ext4 (package e2fsprogs)" >&2; exit 1; }

if [ $# -eq 3 ]; then
    size=$3
else
    kib=$(du -sk --apparent-size "$dir" | cut -f1)
    # small files take a block each, whatever their length: count them on top
    kib=$((kib + 4 * $(find "$dir" | wc -l)))
    size=$((kib + kib / 4 + 16384))K
fi
tmp=$out.tmp.$$
trap 'rm -f "$tmp"' EXIT
truncate -s "$size" "$tmp"
# a short-lived image needs neither reserved blocks nor a resize reserve
mkfs.ext4 -q -F -m 0 -O ^resize_inode -E root_owner=0:0,lazy_itable_init=1,nodiscard -L pollux-files -d "$dir" "$tmp"
mv -f "$tmp" "$out"
