#!/bin/sh
# Installs the C library: header, shared and static library, pkg-config file.
#
#   PREFIX=/usr/local DESTDIR= ffi/install.sh
#
# LIBDIR and INCLUDEDIR may be set too. It needs cargo and a C compiler (CC). The shared library is linked here and not by
# cargo, so that it gets a soname and versioned symbols.
set -eu
cd "$(dirname "$0")"

PREFIX=${PREFIX:-/usr/local}
LIBDIR=${LIBDIR:-$PREFIX/lib}
INCLUDEDIR=${INCLUDEDIR:-$PREFIX/include}
DESTDIR=${DESTDIR:-}
CC=${CC:-cc}
PROFILE=${PROFILE:-release}

version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' ../Cargo.toml)
# Before 1.0 every minor version may change the interface.
case $version in
0.*) abi=$(echo "$version" | cut -d. -f1-2) ;;
*) abi=${version%%.*} ;;
esac

cargo build --quiet --profile "$PROFILE" --package stillframe-ffi
case $PROFILE in dev) built=debug ;; *) built=$PROFILE ;; esac
target=${CARGO_TARGET_DIR:-../target}
archive=$target/$built/libstillframe.a

install -d "$DESTDIR$LIBDIR/pkgconfig" "$DESTDIR$INCLUDEDIR"
install -m 644 ../include/stillframe.h "$DESTDIR$INCLUDEDIR/"
install -m 644 "$archive" "$DESTDIR$LIBDIR/"
"$CC" -shared -o "$DESTDIR$LIBDIR/libstillframe.so.$version" \
    -Wl,-soname,"libstillframe.so.$abi" -Wl,--version-script=stillframe.map -Wl,--no-undefined -Wl,--gc-sections -Wl,-z,relro,-z,now \
    -Wl,--whole-archive "$archive" -Wl,--no-whole-archive -lgcc_s -lpthread -ldl -lm -lc
chmod 755 "$DESTDIR$LIBDIR/libstillframe.so.$version"
[ "$abi" = "$version" ] || ln -sf "libstillframe.so.$version" "$DESTDIR$LIBDIR/libstillframe.so.$abi"
ln -sf "libstillframe.so.$version" "$DESTDIR$LIBDIR/libstillframe.so"
sed -e "s|@PREFIX@|$PREFIX|" -e "s|@LIBDIR@|$LIBDIR|" -e "s|@INCLUDEDIR@|$INCLUDEDIR|" -e "s|@VERSION@|$version|" \
    stillframe.pc.in >"$DESTDIR$LIBDIR/pkgconfig/stillframe.pc"
