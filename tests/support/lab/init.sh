#!/bin/busybox sh
# Init of the lab's guests: mounts, modules, then runs the scripts the test drops into the shared folder, one by one:
# reads N.sh, leaves N.out and, when it has ended, N.rc. Words on the kernel command line: `lab.host` puts the host's
# root (read-only) under the scripts' feet, with an empty /tmp, /run and /var/lib.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
while read -r module; do
    insmod "/modules/$module.ko" || echo "lab: $module does not load"
done </modules/order
ip link set lo up
share=version=9p2000.L,trans=virtio,msize=262144
mount -t 9p -o "$share,cache=none" share /share || echo "lab: no shared folder"

root=
if grep -qw lab.host /proc/cmdline; then
    root=/host
    mount -t 9p -o "$share,cache=loose,ro" host /host || echo "lab: no host root"
    for dir in proc sys dev; do mount --rbind "/$dir" "/host/$dir"; done
    mount -t tmpfs tmpfs /host/tmp
    mount -t tmpfs tmpfs /host/run
    mount -t tmpfs tmpfs /host/var/lib
    mkdir -p /host/run/lab /host/run/bin
    for file in /bin/*; do [ -L "$file" ] || cp "$file" /host/run/bin/; done
    export PATH="/run/bin:$PATH" TMPDIR=/run HOME=/run
else
    mkdir -p /run/lab
fi
mount --move /share "$root/run/lab"
cat >"$root/run/agent" <<'AGENT'
cd /run/lab || exit
number=1
echo up >agent
while :; do
    if [ -e "$number.sh" ]; then
        sh "$number.sh" >"$number.out" 2>&1 </dev/null
        echo $? >"$number.rc.part"
        mv "$number.rc.part" "$number.rc"
        number=$((number + 1))
    else
        sleep 0.1
    fi
done
AGENT
if [ -n "$root" ]; then
    exec chroot /host /bin/bash /run/agent
fi
exec sh /run/agent
