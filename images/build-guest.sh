#!/usr/bin/env bash
# Builds the guest of the QEMU tests from Debian packages, without privileges:
#
#   target/guest/vmlinuz     Debian's cloud kernel
#   target/guest/initramfs   busybox, dmsetup, e2fsprogs, lsblk, blkdiscard, fstrim,
#                            disktool (images/guest)
#   target/guest/root.img    the same as an ext4 disk, to boot from
#   target/guest/lvm.cpio    to append to the initramfs: lvm2, blkid, and the
#                            libraries that the snapback program needs there
#   target/guest/boot.img    the same as a FAT disk with boot loaders (syslinux for
#                            a BIOS, systemd-boot for UEFI), kernel and initramfs
#   target/guest/ovmf-*.fd   UEFI firmware and the variables that it starts with
#   target/guest/manifest    the packages that it was made of
#
# The result is kept until the recipe changes. `qemu-tests/install.sh` installs the
# programs that this script needs.
# Because of pipefail, the reader of a pipe must read until its writer has ended.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

recipe=$(cd "$(dirname "$0")" && pwd)
guest=${CARGO_TARGET_DIR:-$recipe/../target}/guest
mkdir -p "$guest"
guest=$(cd "$guest" && pwd)

exec 9>"$guest/.lock"
flock 9
stamp=$(cat "$recipe/build-guest.sh" "$recipe"/guest/* | sha256sum)
if [ "$(cat "$guest/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
echo "Building the guest in $guest"

for program in apt-get dpkg-deb cpio depmod modprobe mke2fs e2fsck resize2fs dmsetup blkid lsblk rustc; do
    command -v "$program" >/dev/null || {
        echo "build-guest: '$program' is missing; run qemu-tests/install.sh" >&2
        exit 2
    }
done

work=$(mktemp -d "$guest/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{debs,kernel,busybox,boot}
tree=$work/tree
mkdir -p "$tree"/{bin,lib64,lib,modules,dev,proc,sys,tmp,mnt,newroot,etc}
ln -s bin "$tree/sbin"

# --- packages
kernel_package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ && !seen++ { print $2 }')
if [ -z "$kernel_package" ]; then
    echo "build-guest: apt knows no linux-image-cloud-amd64; run apt-get update" >&2
    exit 2
fi
# Of lvm2's libraries, those that this machine lacks.
mapfile -t lvm_libraries < <(apt-cache depends --recurse --important lvm2 |
    grep '^lib' | grep -vE 'elogind|lvm2cmd' | sort -u |
    while read -r package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
    done)
(cd "$work/debs" && apt-get -q -o APT::Sandbox::User="$(id -un)" download \
    "$kernel_package" busybox-static lvm2 "${lvm_libraries[@]}" \
    mtools syslinux systemd-boot-efi ovmf)
dpkg-deb -x "$work"/debs/linux-image-*.deb "$work/kernel"
dpkg-deb -x "$work"/debs/busybox-static_*.deb "$work/busybox"
for package in "$work"/debs/{lvm2,lib}*.deb; do
    dpkg-deb -x "$package" "$work/lvm"
done
for package in "$work"/debs/{mtools,syslinux,systemd-boot-efi,ovmf}_*.deb; do
    dpkg-deb -x "$package" "$work/boot"
done
version=$(basename "$work"/kernel/boot/vmlinuz-*)
version=${version#vmlinuz-}

# --- modules, in the order in which they load
if [ ! -e "$work/kernel/lib/modules" ]; then
    ln -s ../usr/lib "$work/kernel/lib"
fi
depmod -b "$work/kernel" "$version"
for module in virtio_pci virtio_blk ext4 dm-mod dm-snapshot dm-flakey dm-delay dm-log-writes quota_v2; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
    name=$(basename "$path")
    case $name in
        *.ko) cp "$path" "$tree/modules/$name" ;;
        *.ko.xz) name=${name%.xz} && xz -dc "$path" >"$tree/modules/$name" ;;
        *.ko.zst) name=${name%.zst} && zstd -qdc "$path" >"$tree/modules/$name" ;;
    esac
    echo "$name" >>"$tree/modules/order"
done

# --- programs and the libraries that they load
cp "$(find "$work/busybox" -path "*/bin/busybox" -type f)" "$tree/bin/busybox"
for applet in $("$tree/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$tree/bin/$applet"
done
for program in dmsetup mke2fs e2fsck resize2fs blockdev lsblk blkdiscard fstrim; do
    rm -f "$tree/bin/$program"
    cp -L "$(command -v "$program")" "$tree/bin/$program"
done
ln -sf mke2fs "$tree/bin/mkfs.ext4"
cp /etc/mke2fs.conf "$tree/etc/"
# libraries PROGRAM...: the paths of their shared libraries on this machine.
libraries() {
    ldd "$@" | awk '/not found/ { print "build-guest: no library " $1 >"/dev/stderr"; exit 2 }
                    /=> \// { print $3 } $1 ~ /ld-linux/ { print $1 }' | sort -u
}
libraries "$tree"/bin/{dmsetup,mke2fs,e2fsck,resize2fs,blockdev,lsblk,blkdiscard,fstrim} |
    while read -r library; do
        case $library in
            */ld-linux*) cp -L "$library" "$tree/lib64/" ;;
            *) cp -L "$library" "$tree/lib/" ;;
        esac
    done
rustc --edition 2024 -O -C strip=symbols -C target-feature=+crt-static \
    -o "$tree/bin/disktool" "$recipe/guest/disktool.rs"
cp "$recipe/guest/init" "$tree/init"

# --- lvm2, only for the tests that need it, because it makes a boot slower
extra=$work/extra
mkdir -p "$extra"/{bin,lib,etc/lvm,run/lock}
cp "$(find "$work/lvm" -name lvm -path '*bin/lvm' -type f)" "$(command -v blkid)" "$extra/bin/"
for command in pvcreate pvs vgcreate vgchange vgs lvcreate lvchange lvconvert lvremove lvs; do
    ln -s lvm "$extra/bin/$command"
done
cp "$recipe/guest/lvm.conf" "$extra/etc/lvm/"
{
    LD_LIBRARY_PATH=$(find "$work/lvm" -name 'lib*.so*' -printf '%h\n' | sort -u | paste -sd:) \
        libraries "$extra"/bin/{lvm,blkid}
    ldconfig -p | awk '/libgcc_s.so.1 .*x86-64/ && !seen++ { print $NF }'
} | while read -r library; do
    [ -e "$tree/lib/$(basename "$library")" ] || cp -L "$library" "$extra/lib/"
done

# --- images
cp -L "$work/kernel/boot/vmlinuz-$version" "$guest/vmlinuz"
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$guest/initramfs"
(cd "$extra" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$guest/lvm.cpio"
rm -f "$guest/root.img"
mke2fs -q -t ext4 -E root_owner=0:0 -L snapback-root -d "$tree" "$guest/root.img" 64M

# --- a disk that firmware boots. Its boot loaders pass a mark to the kernel: a test
# changes the mark and can tell from which content the machine was booted
options='console=ttyS0 quiet panic=-1 no_timer_check mark=before'
cat >"$work/syslinux.cfg" <<EOF
DEFAULT guest
LABEL guest
LINUX /vmlinuz
INITRD /initramfs
APPEND $options
EOF
cat >"$work/guest.conf" <<EOF
linux /vmlinuz
initrd /initramfs
options $options
EOF
echo "timeout 0" >"$work/loader.conf"
export PATH=$work/boot/usr/bin:$PATH MTOOLS_SKIP_CHECK=1
disk=$guest/boot.img
rm -f "$disk"
truncate -s 64M "$disk"
mformat -i "$disk" -F -h 16 -s 63 -T $((64 * 2048)) ::
mmd -i "$disk" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
mcopy -i "$disk" "$guest"/{vmlinuz,initramfs} "$work/syslinux.cfg" ::/
mcopy -i "$disk" "$work/boot/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i "$disk" "$work/loader.conf" ::/loader/
mcopy -i "$disk" "$work/guest.conf" ::/loader/entries/
syslinux --install "$disk"
cp "$work/boot/usr/share/OVMF/OVMF_CODE_4M.fd" "$guest/ovmf-code.fd"
cp "$work/boot/usr/share/OVMF/OVMF_VARS_4M.fd" "$guest/ovmf-vars.fd"
{
    ls "$work/debs"
    dpkg-query -W -f '${Package} ${Version}\n' dmsetup e2fsprogs libc6
} >"$guest/manifest"
echo "$stamp" >"$guest/stamp"
ls -l "$guest"
