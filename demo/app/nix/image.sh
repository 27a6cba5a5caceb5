# Packs the image. Times, owners and order are fixed: the same content gives the same bytes.
deterministic() { tar --sort=name --mtime=@1 --owner=0 --group=0 --numeric-owner --format=gnu "$@"; }

mkdir -p root/bin root/nix/store layer image
cp -a "$program" "$busybox" root/nix/store/
ln -s "$busybox/bin/sh" root/bin/sh
deterministic -C root -cf layer.tar .

digest=$(sha256sum layer.tar | cut -d ' ' -f 1)
mkdir "image/$digest"
mv layer.tar "image/$digest/layer.tar"
printf '1.0' > "image/$digest/VERSION"
printf '{"id":"%s","created":"1970-01-01T00:00:01Z","os":"linux"}' "$digest" > "image/$digest/json"

cat > config.json <<JSON
{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:01Z",
"config":{"Cmd":["$program/bin/$application"],"Env":["PATH=$busybox/bin:$program/bin"],"ExposedPorts":{"8080/tcp":{}}},
"rootfs":{"type":"layers","diff_ids":["sha256:$digest"]},
"history":[{"created":"1970-01-01T00:00:01Z","created_by":"nix build"}]}
JSON
config=$(sha256sum config.json | cut -d ' ' -f 1).json
mv config.json "image/$config"
printf '[{"Config":"%s","RepoTags":["%s:latest"],"Layers":["%s/layer.tar"]}]' "$config" "$application" "$digest" \
  > image/manifest.json
deterministic -C image -cf - . | gzip -n > "$out"
