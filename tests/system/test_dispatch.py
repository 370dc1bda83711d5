"""Every command that libreswan 3.29 to 5.4 have: it works, is a program of libreswan's, or says why not."""

from __future__ import annotations

from ..ground.machine import Machine

NAMES = """start stop restart setup status trafficstatus traffic fipsstatus fips globalstatus shuntstatus briefstatus
showstates connectionstatus briefconnectionstatus auto add replace ondemand checkconfig up initiate down terminate
delete route unroute redirect listen ready listall listcacerts listcerts listcrls listpubkeys checkpubkeys purgeocsp
rereadall rereadcerts secrets rereadsecrets crls fetchcrls rereadcrls rereadcacerts rereadgroups whack initnss checknss
import certutil crlutil modutil pk12util vfychain checknflog nflog stopnflog sniff unbound letsencrypt newhostkey
rsasigkey ecdsasigkey eddsasigkey showhostkey readwriteconf addconn showroute cavp _import_crl pluto barf look
_secretcensor verify show portexcludes _stackmanager _updown _keycensor eroute klipsdebug pf_key spi spigrp tncfg
asn1check directory version versioncode help""".split()


def test_every_command(gateway: Machine) -> None:
    libreswans = set(gateway.run(["ls", "/usr/libexec/ipsec"]).check().stdout.split())
    assert {"pluto", "whack", "addconn"} <= libreswans
    for name in NAMES:
        result = gateway.ipsec(name, "--help")
        output = result.stdout + result.stderr
        assert "unknown IPsec command" not in output and "internal error" not in output, (name, output)
        if f"Usage: ipsec {name}" in output or f"Also written: {name}" in output or f", {name}" in output:
            assert result.status == 0, (name, output)
        elif name not in libreswans:
            assert (result.status == 1 and len(output.splitlines()) == 1
                    and output.startswith(f"ipsec {name}: is ")), output
    assert gateway.ipsec("frobnicate").stderr.startswith('ipsec: unknown IPsec command "frobnicate"')
