#!/usr/bin/env bash
# Run an arm64 Python with the pinned packages under QEMU: arm64.sh FOLDER CPU ARGUMENTS...
# The first time, it puts them into FOLDER. That needs Debian, its package qemu-user and root.
set -euo pipefail
folder=$(realpath -m "$1") cpu=$2
shift 2
if [ ! -d "$folder/site" ]; then
  mkdir -p "$folder/packages"
  libraries=(python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6
    libgomp1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1)
  dpkg --add-architecture arm64
  apt-get -qq update
  (cd "$folder/packages" && apt-get -qq download "${libraries[@]/%/:arm64}")
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder/root"; done
  # pip ignores the markers' platform with --platform, and tensorflow-cpu exists for x86-64 only.
  sed -nE 's/^tensorflow-cpu==/tensorflow==/; s/^([A-Za-z0-9._-]+==[^ ]+).*/\1/p' requirements.txt | sort -u > "$folder/pins.txt"
  python3 -m pip install -q --no-deps --only-binary=:all: --target "$folder/partial" --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 -r "$folder/pins.txt"
  mv "$folder/partial" "$folder/site"
fi
unset NPY_DISABLE_CPU_FEATURES OPENBLAS_CORETYPE # of the x86-64 process that runs this
PYTHONPATH=$folder/site exec qemu-aarch64 -cpu "$cpu" -L "$folder/root" "$folder/root/usr/bin/python3.11" "$@"
