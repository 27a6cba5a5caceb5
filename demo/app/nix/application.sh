# Compiles the program. Static, because its image holds no libc. The linker's warning that getaddrinfo
# wants shared libraries is about a function that the program does not call.
mkdir -p "$out/bin" build
"$ghc/bin/ghc" --make -O1 -threaded -static -optl-static -optl-pthread \
  -i"$source" -outputdir build -o "$out/bin/$application" "$source/Main.hs"
strip "$out/bin/$application"
