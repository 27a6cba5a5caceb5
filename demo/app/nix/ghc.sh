# The GHC of the machine as a store path: a tree of links into /usr/lib/ghc, but for the compiler itself
# and the archive of `base`, which are here in full, as in a store path of nixpkgs.
original=/usr/lib/ghc
tree=$out/lib/ghc
mkdir -p "$out/bin" "$out/lib"
cp -rs "$original" "$tree"

base=$(cd "$original" && echo base-*)
for real in bin/ghc settings "$base/libHS$base.a"; do
  rm "$tree/$real"
  cp "$original/$real" "$tree/$real"
done

# The package database names absolute paths: `base` is to be taken from here.
rm "$tree/package.conf.d"
cp -r "$original/package.conf.d/" "$tree/package.conf.d"
chmod -R u+w "$tree/package.conf.d"
sed -i "s,^\(library-dirs: *\)$original/base,\1$tree/base," "$tree/package.conf.d/$base.conf"
ghc-pkg --package-db="$tree/package.conf.d" recache

printf '#!/bin/sh\nexec "%s/bin/ghc" -B"%s" "$@"\n' "$tree" "$tree" > "$out/bin/ghc"
chmod 755 "$out/bin/ghc"
