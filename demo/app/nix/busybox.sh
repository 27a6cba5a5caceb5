# A shell for whoever looks into the container.
mkdir -p "$out/bin"
cp /bin/busybox "$out/bin/busybox"
for program in sh ls cat ps wget; do ln -s busybox "$out/bin/$program"; done
