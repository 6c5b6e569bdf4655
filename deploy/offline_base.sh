#!/usr/bin/env bash
# Where no registry of images is reached: makes the base image that the Dockerfiles name, from Debian
# packages, with debootstrap and buildah. As root, on Debian 12: deploy/offline_base.sh
# Then: make images BUILD="buildah bud --format docker --pull-never"
set -euo pipefail
name=$(sed -n 's/^ARG BASE=//p' "$(dirname "$0")/Dockerfile.serve")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" \
  >"$work/log" || { tail "$work/log" >&2; exit 1; }
# As slim images do.
rm -rf "$work"/root/{var/cache/apt/archives/*.deb,var/cache/apt/*.bin,var/lib/apt/lists/*}
rm -rf "$work"/root/usr/share/{doc,info,locale,man}/*
tar -C "$work/root" --exclude './dev/*' -cf "$work/root.tar" .
rm -rf "$work/root"
printf 'FROM scratch\nADD root.tar /\nCMD ["python3"]\n' >"$work/Dockerfile"
buildah bud --quiet --tag "$name" "$work"
