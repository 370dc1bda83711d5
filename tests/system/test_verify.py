"""verify on real hosts: nothing to complain of on healthy ones, and what is broken is found.

The kernel that the tests run on may lack ESP: then verify has to say so on every host, and a kernel that has it is
booted for what needs one.
"""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Callable

import pytest

from ..ground.gateways import NAMES, Gateways
from ..ground.host import Result
from ..ground.machine import PYZ, Machine
from ..ground.pluto import Pluto

CONFIG = """config setup
conn fine
\tauto=add
\tleft=192.0.2.1
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.2
\trightsubnet=10.2.0.0/24
\tauthby=secret
"""
SECRETS = '192.0.2.1 192.0.2.2 : PSK "a pre-shared key"\n'
SYSCTL = "/proc/sys/net/ipv4"
NFT_INPUT = "nft add table inet f; nft add chain inet f input '{ type filter hook input priority 0; policy drop; }'; "
NFT_OUTPUT = NFT_INPUT.replace("input", "output")
NFT_RULE = "nft add rule inet f input "
NFT_NAT = ("nft add table ip n; nft add chain ip n masks '{ type nat hook postrouting priority 100; }'; "
           "nft add rule ip n masks ")
LEGACY_NAT = "iptables-legacy -t nat -A POSTROUTING "
CERTIFICATE = ("date | sha512sum >/noise; cd /; certutil -S -x -d sql:/var/lib/ipsec/nss -n gateway -s CN=gateway -t "
               "CTu,, -z /noise -g 2048 -m 7")
OWN_CERTIFICATE = ("openssl req -x509 -newkey {} -nodes -days 400 -subj /CN=gateway -addext "
                   "subjectAltName=DNS:gw.example.org -keyout /key -out /pem 2>&1; "
                   f"python3 {PYZ} import /pem /key; sed -i s/authby=.*/authby=rsasig/ /etc/ipsec.conf; ")
FIREWALLD = NFT_INPUT + """
for chain in zones public allow; do nft add chain inet f $chain; done
nft add rule inet f input ct state { established, related } accept
nft add rule inet f input ct status dnat accept
nft add rule inet f input iifname lo accept
nft add rule inet f input jump zones
nft add rule inet f input ct state invalid drop
nft add rule inet f input reject with icmpx admin-prohibited
nft add rule inet f zones iifname eth1 goto public
nft add rule inet f zones goto public
nft add rule inet f public jump allow
nft add rule inet f public meta l4proto { icmp, ipv6-icmp } accept
nft add rule inet f allow tcp dport 22 ct state { new, untracked } accept
"""

#: The configuration is older than pluto's start
YESTERDAY = "touch -d yesterday /etc/ipsec.conf"

#: Have pluto take what was changed in the files
AGAIN = "ipsec auto --rereadsecrets; ipsec whack --listen; ipsec auto --replace fine; "

FILES = "/etc/ipsec.conf /etc/ipsec.secrets"
ON_LO = "ip address add 10.7.0.1/32 dev lo; iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE;"

#: End pluto, and start it again
RESTART = ("/usr/libexec/ipsec/whack --shutdown; while pidof pluto; do sleep 0.1; done; /usr/libexec/ipsec/pluto "
           "--config /etc/ipsec.conf; until ipsec whack --status | grep loaded.1,; do sleep 0.1; done")

#: The same gateway by IPv6, as commands of a shell there
SIX = ("ip -6 addr add fd00:9::1/64 dev eth0 nodad; ip -6 addr add fd00:1::1/64 dev eth1 nodad; "
       "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; sed -i 's/192.0.2.1/fd00:9::1/; s/192.0.2.2/fd00:9::2/; "
       f"s,10.1.0.0/24,fd00:1::/64,; s,10.2.0.0/24,fd00:2::/64,' /etc/ipsec.conf /etc/ipsec.secrets; {AGAIN}")

#: The findings of checks that have nothing to check: without connections, with no end here, without a database
NO_CONNS = dict.fromkeys(("forwarding", "peers", "mtu", "firewall", "forward_rules", "nat", "certificates", "psk",
                          "host_keys", "overlap", "up"), "SKIP")
NO_ENDS = dict.fromkeys(("forwarding", "peers", "mtu", "forward_rules", "nat", "host_keys"), "SKIP")
NO_CONFIG = {**NO_CONNS, "loaded": "SKIP", "obsolete": "SKIP", "virtual_private": "SKIP"}
#: Gives the database a password and ends pluto
PASSWORD = ("echo >/old; echo Secret99 >/new; certutil -W -d sql:/var/lib/ipsec/nss -f /old -@ /new; kill -KILL "
            "$(cat /run/pluto/pluto.pid); umask 077; ")
NO_DATABASE = {"nss": "FAIL", "nss_health": "SKIP", "certificates": "SKIP"}
NO_PLUTO = {"pluto": "FAIL", "udp500": "SKIP", "udp4500": "SKIP", "loaded": "SKIP", "up": "SKIP",
            "versions": "SKIP", "fips": "SKIP", "peers": "SKIP"}

#: The checks that have nothing to check on the healthy gateway
UNUSED = {"certificates", "host_keys", "virtual_private", "crypto_policy"}

#: What breaks a gateway that was fine (by a shell there), and the checks that have to find it, with their levels
BROKEN = {
    "strict filter": (f"echo 1 >{SYSCTL}/conf/eth0/rp_filter", {"rp_filter": "WARN"}),
    "strict filter for all": (f"echo 1 >{SYSCTL}/conf/all/rp_filter", {"rp_filter": "WARN"}),
    "strict filter, and another way to the peer": (
        f"echo 1 >{SYSCTL}/conf/eth0/rp_filter; ip route add 192.0.2.2 dev eth1", {"rp_filter": "FAIL"}),
    "strict filter, and an address elsewhere": (
        f"echo 1 >{SYSCTL}/conf/eth1/rp_filter; ip address add 203.0.113.1/32 dev eth1; sed -i "
        f"s/192.0.2.1/203.0.113.1/ /etc/ipsec.conf /etc/ipsec.secrets; {AGAIN}", {"rp_filter": "WARN"}),
    "sends redirects": (f"echo 1 >{SYSCTL}/conf/eth0/send_redirects", {"send_redirects": "WARN"}),
    "believes redirects": (f"for n in all eth0; do echo 1 >{SYSCTL}/conf/$n/accept_redirects; done",
                           {"accept_redirects": "WARN"}),
    "no larval drop": ("echo 0 >/proc/sys/net/core/xfrm_larval_drop", {"larval_drop": "FAIL"}),
    "no forwarding": (f"echo 0 >{SYSCTL}/ip_forward", {"forwarding": "FAIL"}),
    "no forwarding from the network behind": (f"echo 0 >{SYSCTL}/conf/eth1/forwarding", {"forwarding": "FAIL"}),
    "not encrypted where it goes out": (f"echo 1 >{SYSCTL}/conf/eth0/disable_xfrm", {"xfrm": "FAIL"}),
    "encrypted nowhere": (f"echo 1 >{SYSCTL}/conf/all/disable_xfrm", {"xfrm": "FAIL"}),
    "no path MTU discovery": (f"echo 1 >{SYSCTL}/ip_no_pmtu_disc", {"mtu": "WARN"}),
    "small MTU": ("ip link set eth0 mtu 1300", {"mtu": "WARN"}),
    "large mtu=": ("echo '\tmtu=1500' >>/etc/ipsec.conf", {"mtu": "WARN"}),
    "cipher that no kernel has here": ("echo '\tesp=camellia256-sha2_512' >>/etc/ipsec.conf", {"algorithms": "FAIL"}),
    "AH": ("echo '\tphase2=ah' >>/etc/ipsec.conf", {"esp": "FAIL"}),
    "no entropy": ("echo 7 >/7; mount --bind /7 /proc/sys/kernel/random/entropy_avail", {"entropy": "WARN"}),
    "policy drop": ("iptables -P INPUT DROP", {"firewall": "FAIL WARN FAIL WARN"}),
    "policy drop but for answers": ("iptables -P INPUT DROP; iptables -A INPUT -m conntrack --ctstate "
                                    "RELATED,ESTABLISHED -j ACCEPT", {"firewall": "WARN WARN WARN"}),
    "ESP rejected": ("iptables -A INPUT -p esp -j REJECT", {"firewall": "FAIL"}),
    "a chain drops IKE": ("iptables -N ike; iptables -A ike -s 192.0.2.9 -j RETURN; iptables -A ike -i lo -j ACCEPT; "
                          "iptables -A ike -p udp --sport 500 -j DROP; iptables -A INPUT -m limit --limit 1/s -j LOG; "
                          "iptables -A INPUT -p udp -g ike", {"firewall": "FAIL"}),
    "legacy drops 500": ("iptables-legacy -A INPUT -p udp -m multiport --dports 53,500 -j DROP", {"firewall": "FAIL"}),
    "legacy drops 4500": ("iptables-legacy -A INPUT -p udp --dport 4000:5000 -j DROP", {"firewall": "WARN"}),
    "ICMP dropped": ("iptables -A INPUT -p icmp -j DROP", {"firewall": "WARN"}),
    "nft drops 500": (f"{NFT_INPUT}{NFT_RULE}udp dport != 500 accept; {NFT_RULE}meta l4proto esp accept; {NFT_RULE}ip "
                      "protocol icmp accept", {"firewall": "FAIL"}),
    "nft map": (f"{NFT_INPUT}{NFT_RULE}ct state vmap {{ established : accept, related : accept, invalid : drop }}; "
                f"{NFT_RULE}udp dport {{ 500, 4500 }} counter accept", {"firewall": "WARN"}),
    "nft's rules without nft": (f"{NFT_INPUT}rm /usr/sbin/nft", {"firewall": "SKIP", "forward_rules": "SKIP",
                                                                 "nat": "SKIP"}),
    "iptables' rules without nft": ("iptables -P INPUT DROP; rm /usr/sbin/nft", {"firewall": "FAIL WARN FAIL WARN"}),
    "iptables' rules without nft, and the other iptables": (
        "iptables-nft -P INPUT DROP; ln -sf iptables-legacy-save /usr/sbin/iptables-save; rm /usr/sbin/nft",
        {"firewall": "FAIL WARN FAIL WARN"}),
    "firewalld": (FIREWALLD, {"firewall": "WARN WARN WARN"}),
    "no forwarded packets": ("iptables -P FORWARD DROP", {"forward_rules": "FAIL FAIL"}),
    "forwarded packets one way": ("iptables -A FORWARD -i eth1 -j ACCEPT; iptables -A FORWARD -d 10.1.0.0/16 -j DROP",
                                  {"forward_rules": "FAIL"}),
    "only answers are forwarded": ("iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,"
                                   "ESTABLISHED -j ACCEPT", {"forward_rules": "FAIL FAIL"}),
    "a bridge of containers is forwarded": (
        "iptables -P FORWARD DROP; iptables -A FORWARD -o docker0 -m conntrack --ctstate ESTABLISHED -j ACCEPT; "
        "iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT", {"forward_rules": "FAIL FAIL"}),
    "IKE goes to another host": ("iptables -t nat -A PREROUTING -i eth0 -p udp -m multiport --dports 500,4500 -j DNAT "
                                 "--to-destination 10.1.0.5", {"firewall": "FAIL WARN"}),
    "masquerade": ("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", {"nat": "FAIL"}),
    "legacy masquerade": (f"{LEGACY_NAT}-s 10.0.0.0/8 -j MASQUERADE", {"nat": "FAIL"}),
    "SNAT": ("iptables -t nat -A POSTROUTING -s 10.1.0.0/24 ! -d 10.3.0.0/16 -j SNAT --to-source 192.0.2.1",
             {"nat": "FAIL"}),
    "nft masquerade": (f"{NFT_NAT}oifname eth* counter masquerade", {"nat": "FAIL"}),
    "IKE can't leave": ("iptables -P OUTPUT DROP; iptables -A OUTPUT -p esp -j ACCEPT; sed -i "
                        f"s/auto=add/auto=ondemand/ /etc/ipsec.conf; {AGAIN} ipsec auto --route fine", {
                            "firewall": "FAIL WARN"}),
    "ESP can't leave": (f"{NFT_OUTPUT}nft add rule inet f output meta l4proto {{ udp, icmp }} accept",
                        {"firewall": "FAIL"}),
    "dropped before conntrack": ("iptables -t raw -A PREROUTING -p udp --dport 500 -s 192.0.2.2 -j DROP",
                                 {"firewall": "FAIL"}),
    "mangled away": ("iptables-legacy -t mangle -A POSTROUTING -p esp -d 192.0.2.0/24 -j DROP", {"firewall": "FAIL"}),
    "hub behind NAT": ("sed -i s,rightsubnet.*,rightsubnet=0.0.0.0/0, /etc/ipsec.conf; iptables -t nat -A POSTROUTING "
                       f"-o eth0 -j MASQUERADE; {AGAIN}", {"nat": "FAIL"}),
    "IPv6: policy drop": (f"{SIX}ip6tables -P INPUT DROP", {"firewall": "FAIL WARN FAIL WARN"}),
    "IPv6: legacy drops ESP": (f"{SIX}ip6tables-legacy -A INPUT -s fd00:9::/64 -p esp -j DROP", {"firewall": "FAIL"}),
    "IPv6: nft drops ICMP": (f"{SIX}{NFT_INPUT}{NFT_RULE}ip protocol != tcp accept; {NFT_RULE}ip6 saddr fd00:9::2 udp "
                             f"dport {{ 500, 4500 }} accept; {NFT_RULE}ip6 nexthdr esp accept; {NFT_RULE}icmpv6 type "
                             "{ nd-neighbor-solicit, echo-request } accept", {"firewall": "WARN"}),
    "IPv6: no forwarding": (f"{SIX}cd /proc/sys/net/ipv6/conf; echo 0 >all/forwarding; echo 1 >eth0/forwarding; "
                            "echo 1 >eth1/forwarding", {"forwarding": "FAIL"}),
    "IPv6: no forwarded packets": (f"{SIX}ip6tables -P FORWARD DROP", {"forward_rules": "FAIL FAIL"}),
    "IPv6: masquerade": (f"{SIX}ip6tables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", {"nat": "FAIL"}),
    "a rate that decides": (
        "iptables -A INPUT -p udp -m hashlimit --hashlimit-above 100/s --hashlimit-name ike -j DROP",
        {"firewall": "SKIP"}),
    "address and port together decide": (
        f"{NFT_INPUT}{NFT_RULE}ip saddr . udp dport {{ 192.0.2.2 . 500, 192.0.2.2 . 4500 }} accept; "
        f"{NFT_RULE}meta l4proto vmap {{ esp : accept, icmp : accept, tcp : drop }}", {"firewall": "SKIP"}),
    "untracked packets": (
        "iptables -t raw -A PREROUTING -p udp -m multiport --dports 500,4500 -j CT --notrack; iptables -P INPUT DROP; "
        "iptables -A INPUT -m conntrack --ctstate UNTRACKED,RELATED -j ACCEPT; iptables -A INPUT -p esp -j ACCEPT",
        {"firewall": "SKIP"}),
    "a table of nft beside one of iptables": (
        "nft add table ip filter; nft 'add chain ip filter input { type filter hook input priority 0; policy drop; }'; "
        "iptables -t nat -A POSTROUTING -m policy --dir out --pol none -j MASQUERADE",
        {"firewall": "FAIL WARN FAIL WARN"}),
    "nft's own table with the names of iptables": (
        "nft add table ip filter; nft 'add chain ip filter INPUT { type filter hook input priority 0; policy drop; }'; "
        "nft 'add rule ip filter INPUT udp dport { 53, 123 } counter accept'", {"firewall": "FAIL WARN FAIL WARN"}),
    "a comparison that decides": (
        f"{NFT_INPUT}{NFT_RULE}udp dport '>=' 500 accept; {NFT_RULE}meta l4proto '{{ esp, icmp }}' accept",
        {"firewall": "SKIP"}),
    "a mark that decides on forwarding": (
        "iptables -P FORWARD DROP; iptables -A FORWARD -m mark --mark 7 -j ACCEPT", {"forward_rules": "SKIP"}),
    "new packets dropped in one direction and unknown in the other": (
        "iptables -A FORWARD -m conntrack --ctstate NEW -s 10.1.0.0/24 -j DROP; "
        "iptables -A FORWARD -m conntrack --ctstate NEW -m mark --mark 7 -j DROP", {"forward_rules": "SKIP"}),
    "new packets dropped in one direction": (
        "iptables -A FORWARD -m conntrack --ctstate NEW -s 10.1.0.0/24 -j DROP", {}),
    "a mark that decides on NAT": (
        "iptables -t nat -A POSTROUTING -m mark --mark 7 -j MASQUERADE", {"nat": "SKIP"}),
    "no certutil": ("rm /usr/bin/certutil; kill -KILL $(cat /run/pluto/pluto.pid)", {
        **NO_PLUTO, "nss_health": "SKIP"}),
    "no configuration": ("rm /etc/ipsec.conf", {**NO_CONFIG, "config": "FAIL"}),
    "wrong value": ("echo '\tauto=banana' >>/etc/ipsec.conf", {"config": "FAIL"}),
    "wrong value of ikev2": ("echo '\tikev2=banana' >>/etc/ipsec.conf", {"config": "FAIL"}),
    "keyword of no release": ("echo '\tbanana=yes' >>/etc/ipsec.conf", {"config": "FAIL"}),
    "keyword of older releases": ("echo '\tnat_traversal=yes' >>/etc/ipsec.conf", {"config": "FAIL"}),
    "keyword at the wrong place": ("echo '\tuniqueids=yes' >>/etc/ipsec.conf", {"obsolete": "WARN"}),
    "include beside the file": ("echo 'include ipsec.d/*.conf' >>/etc/ipsec.conf", {"config": "WARN"}),
    "CR LF": ("sed -i 's/$/\\r/' /etc/ipsec.conf", {"config": "FAIL"}),
    "byte order mark": ("sed -i '1s/^/\\xef\\xbb\\xbf/' /etc/ipsec.conf", {"config": "FAIL"}),
    "loop of includes": ("sed -i '1iinclude /etc/ipsec.conf' /etc/ipsec.conf", {"obsolete": "WARN"}),
    "conn that pluto does not take": ("echo '\tike=banana' >>/etc/ipsec.conf; ipsec auto --delete fine; "
                                      f"{AGAIN}{YESTERDAY}", {"loaded": "FAIL"}),
    "conn with a key twice": (f"printf '\tpfs=no\n\tpfs=yes\n' >>/etc/ipsec.conf; ipsec auto --delete fine; {AGAIN}"
                              f"{YESTERDAY}", {**NO_CONNS, "config": "FAIL", "obsolete": "WARN", "loaded": "FAIL"}),
    "conn that was taken away": (f"ipsec auto --delete fine; {YESTERDAY}", {"loaded": "FAIL"}),
    "conn that is new": ("sed 's/fine/new/; s,10.2.0.0,10.3.0.0,; /setup/d' /etc/ipsec.conf >/new; cat /new "
                         ">>/etc/ipsec.conf", {"loaded": "FAIL"}),
    "other network in the file": ("sed -i s,10.2.0.0/24,10.2.0.0/23, /etc/ipsec.conf", {"loaded": "WARN"}),
    "other peer in the file": ("sed -i s,192.0.2.2,192.0.2.3, /etc/ipsec.conf /etc/ipsec.secrets", {"loaded": "WARN"}),
    "other ID in the file": ("echo '\trightid=@east' >>/etc/ipsec.conf; echo '@east : PSK \"12345678\"' "
                             ">/etc/ipsec.secrets", {"loaded": "WARN", "psk": "FAIL"}),
    "SNAT within the network": ("iptables -t nat -A POSTROUTING -s 10.1.0.0/24 -d 10.2.0.0/24 -j SNAT --to-source "
                                "10.1.0.1", {"forward_rules": "SKIP"}),
    "neither end is here": ("ip address del 192.0.2.1/24 dev eth0; ip address add 192.0.2.7/24 dev eth0; ip route add "
                            f"default dev eth0; {AGAIN}", {**NO_ENDS, "loaded": "WARN"}),
    "no route to the peer": (f"ip route del default; sed -i s/192.0.2.2/203.0.113.2/ {FILES}; {AGAIN}",
                             {"peers": "FAIL"}),
    "no addconn": ("rm /usr/libexec/ipsec/addconn", {"installed": "FAIL"}),
    "no updown script": (f"echo '\tleftupdown=\"/etc/none.sh --x\"' >>/etc/ipsec.conf; {AGAIN}", {"loaded": "FAIL"}),
    "updown script without a right": (f"echo >/etc/u; echo '\tleftupdown=/etc/u' >>/etc/ipsec.conf; {AGAIN}",
                                      {"loaded": "FAIL"}),
    "no cable": ("ip link set eth0-peer down", {"peers": "FAIL"}),
    "no cable to the network behind": ("ip link set eth1-peer down", {"peers": "WARN"}),
    "the network behind is switched off": ("ip link set eth1 down", {"peers": "FAIL"}),
    "another program has the port of our end": (
        "/usr/libexec/ipsec/whack --shutdown; while pidof pluto; do sleep 0.1; done; echo 'import socket, time; s = "
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"192.0.2.1\", 4500)); open(\"/bound\", \"w\"); "
        "time.sleep(1000)' >/other.py; python3 /other.py & until [ -e /bound ]; do sleep 0.1; done; "
        "/usr/libexec/ipsec/pluto --config /etc/ipsec.conf; until ipsec whack --status | grep loaded.1,; do sleep 0.1; "
        "done", {"udp4500": "FAIL"}),
    "no route to the peer's network": (
        f"sed -i s/auto=add/auto=ondemand/ /etc/ipsec.conf; {AGAIN} ipsec auto --route fine; ip route del 10.2.0.0/24; "
        "ip route del default", {"peers": "FAIL"}),
    "both ends are here": (f"sed -i s/192.0.2.2/10.1.0.1/ {FILES}; {AGAIN}", {"loaded": "FAIL"}),
    "both ends are here, and pluto is gone": (
        f"sed -i s/192.0.2.2/10.1.0.1/ {FILES}; kill -KILL $(cat /run/pluto/pluto.pid)", {**NO_PLUTO, "peers": "FAIL"}),
    "bad entry of virtual-private=": (
        "sed -i 's,config setup,&\\n\\tvirtual-private=%v4:10.0.0.0/8\\,%v4:172.16.0.0/33,' /etc/ipsec.conf",
        {"virtual_private": "WARN"}),
    "PSK for a network": ("sed -i 's,.*:,192.0.2.0/24 :,' /etc/ipsec.secrets", {"psk": "WARN"}),
    "cut-off base64": ("sed -i 's/PSK.*/PSK 0sYWJjZGVmZ2g/' /etc/ipsec.secrets", {"secrets": "FAIL", "psk": "FAIL"}),
    "NAT of an address on lo": (f"{ON_LO} sed -i s,10.1.0.0/24,10.7.0.1/32, /etc/ipsec.conf; {AGAIN}", {"nat": "FAIL"}),
    "NAT of a network with an address on lo": (f"{ON_LO} sed -i s,10.1.0.0/24,10.7.0.0/24, /etc/ipsec.conf; {AGAIN}",
                                               {"nat": "FAIL"}),
    "conn without auto=": (f"sed -i /auto=/d /etc/ipsec.conf; {AGAIN}sed -i s/192/10/g /etc/ipsec.secrets",
                           {"psk": "FAIL"}),
    "no connection": ("sed -i /auto=/d /etc/ipsec.conf; ipsec auto --delete fine", {**NO_CONNS, "loaded": "SKIP"}),
    "no libreswan": ("kill -KILL $(cat /run/pluto/pluto.pid); rm -r /usr/libexec/ipsec",
                     {**NO_PLUTO, "installed": "FAIL"}),
    "does not come up": ("sed -i s/auto=add/auto=start/ /etc/ipsec.conf", {"up": "WARN"}),
    "way to authenticate that there is not": ("sed -i s/authby=.*/authby=banana/ /etc/ipsec.conf", {
        "config": "FAIL"}),
    "network that is none": ("sed -i s,leftsubnet=.*,leftsubnet=10.1.0.0/33, /etc/ipsec.conf", {"config": "FAIL"}),
    "no way to authenticate": (f"sed -i /authby/d /etc/ipsec.conf; {AGAIN}", {"host_keys": "FAIL"}),
    "not routed": (f"sed -i s/auto=add/auto=ondemand/ /etc/ipsec.conf; {AGAIN}", {"loaded": "WARN"}),
    "no default route": (f"sed -i s/192.0.2.1/%defaultroute/ /etc/ipsec.conf; ip route del default; {AGAIN}", {
        "loaded": "WARN", "psk": "SKIP"}),
    "default route came later": (f"sed -i s/192.0.2.1/%defaultroute/ /etc/ipsec.conf; ip route del default; {AGAIN}"
                                 "ip route add default via 192.0.2.9; ipsec whack --listen", {
                                     "loaded": "WARN", "psk": "SKIP"}),
    "listens elsewhere": (f"sed -i 's/config setup/&\\n\\tlisten=10.1.0.1/' /etc/ipsec.conf; {RESTART}", {
        "loaded": "WARN"}),
    "another program has the port": (
        "echo 'import socket, time\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind((\"\", 4500))\ntime.sleep(1000)'"
        " >/listen; kill -KILL $(cat /run/pluto/pluto.pid); while pidof pluto; do sleep 0.1; done; rm /run/pluto/*; "
        "python3 /listen >/dev/null 2>&1 & until ss -lun | grep -q :4500; do sleep 0.1; done; "
        f"{RESTART.partition('done; ')[2]}", {"udp4500": "FAIL"}),
    "listens nowhere": (f"sed -i 's/config setup/&\\n\\tlisten-udp=no/' /etc/ipsec.conf; {RESTART}", {
        "udp500": "FAIL", "udp4500": "FAIL", "loaded": "WARN"}),
    "open quotes": ("echo ': PSK \"unterminated' >/etc/ipsec.secrets", {"secrets": "FAIL", "psk": "FAIL"}),
    "no secrets": ("rm /etc/ipsec.secrets", {"secrets": "FAIL", "psk": "SKIP"}),
    "no keys": ("rm /var/lib/ipsec/nss/key4.db", NO_DATABASE),
    "password of the database without a newline": (
        f"{PASSWORD}printf 'NSS Certificate DB:Secret99' >/etc/ipsec.d/nsspassword",
        {**NO_PLUTO, "nss_health": "FAIL"}),
    "password of the database for FIPS mode only": (
        f"{PASSWORD}echo 'NSS FIPS 140-2 Certificate DB:Secret99' >/etc/ipsec.d/nsspassword",
        {**NO_PLUTO, "nss_health": "FAIL"}),
    "a database that is none": ("echo nothing >/var/lib/ipsec/nss/cert9.db", {
        "nss_health": "FAIL", "certificates": "SKIP"}),
    "a database that is cut short": ("truncate -s 8192 /var/lib/ipsec/nss/key4.db", {"nss_health": "FAIL"}),
    "damaged pages": (
        f"{CERTIFICATE} -v 12; for n in 4 5 6; do dd if=/noise of=/var/lib/ipsec/nss/cert9.db bs=4096 seek=$n "
        "conv=notrunc; done 2>&1", {"nss_health": "FAIL"}),
    "database in the old place": ("mkdir -p /etc/ipsec.d; mv /var/lib/ipsec/nss/* /etc/ipsec.d", NO_DATABASE),
    "change that was not finished": (
        f"{CERTIFICATE} -v 12; cd /var/lib/ipsec/nss; python3 -c \"import os, sqlite3; base = sqlite3.connect("
        "'cert9.db', isolation_level=None); base.execute('PRAGMA cache_size=1'); base.execute('BEGIN IMMEDIATE'); "
        "base.execute('CREATE TABLE filler (data)'); [base.execute('INSERT INTO filler VALUES (?)', (bytes(5000),)) "
        "for n in range(99)]; os._exit(0)\"", {"nss_health": "SKIP", "certificates": "SKIP"}),
    "no directory of the database": ("rm -r /var/lib/ipsec/nss; cp -a /etc/ipsec.d /etc/other", NO_DATABASE),
    "pipe in the place of the keys": ("rm /var/lib/ipsec/nss/key4.db; mkfifo /var/lib/ipsec/nss/key4.db", {
        "nss": "FAIL", "nss_health": "SKIP"}),
    "password that pluto does not know": (
        "echo >/old; echo pass word >/new; certutil -W -d sql:/var/lib/ipsec/nss -f /old -@ /new; kill -KILL $(cat "
        "/run/pluto/pluto.pid)", {**NO_PLUTO, "nss_health": "FAIL"}),
    "keys for all to read": ("chmod 644 /var/lib/ipsec/nss/key4.db", {"nss_health": "WARN"}),
    "secrets for all to read": ("chmod 644 /etc/ipsec.secrets", {"secret_modes": "WARN"}),
    "a record without kind of key": ("echo '192.0.2.9 :' >>/etc/ipsec.secrets", {"secrets": "FAIL"}),
    "no secret for the peer": ("sed -i s/192/10/g /etc/ipsec.secrets", {"psk": "FAIL"}),
    "secret of one end and another": ("sed -i s/192.0.2.2/192.0.2.22/ /etc/ipsec.secrets", {"psk": "FAIL"}),
    "secret of the peer alone": ("sed -i s/192.0.2.1// /etc/ipsec.secrets; sed -i 's/^ *//' /etc/ipsec.secrets",
                                 {"psk": "FAIL"}),
    "indented secret": ("sed -i 's/^/  /' /etc/ipsec.secrets", {"secrets": "FAIL", "psk": "FAIL"}),
    "digits that are none": ("sed -i 's/PSK.*/PSK 0sabc@@@/' /etc/ipsec.secrets", {"secrets": "FAIL", "psk": "FAIL"}),
    "secrets of somebody else": ("chown nobody /etc/ipsec.secrets", {"secret_modes": "WARN"}),
    "configuration for all to change": ("chmod 666 /etc/ipsec.conf", {"secret_modes": "WARN"}),
    "comma between IDs": ("sed -i 's/192.0.2.1/&,/' /etc/ipsec.secrets", {"secrets": "FAIL", "psk": "FAIL"}),
    "no such CKAID": ("echo '\tleftckaid=00ff' >>/etc/ipsec.conf", {"host_keys": "FAIL"}),
    "key of another host": ("echo '\tleftrsasigkey=0sAwEAAc0ffee' >>/etc/ipsec.conf", {"host_keys": "FAIL"}),
    "no such certificate": ("echo '\tleftcert=gateway' >>/etc/ipsec.conf", {"certificates": "FAIL"}),
    "certificate ended": (f"{CERTIFICATE} -w -12 -v 6", {"certificates": "FAIL"}),
    "certificate ends soon": ("openssl req -x509 -newkey rsa:2048 -nodes -days 20 -subj /CN=gateway -keyout /key -out "
                              f"/pem 2>&1; python3 {PYZ} import /pem /key", {"certificates": "WARN"}),
    "certificate for another ID": (
        OWN_CERTIFICATE.format("rsa:2048") +
        f"printf '\tleftcert=gateway\n\tleftid=@gateway\n' >>/etc/ipsec.conf; {AGAIN}", {"certificates": "WARN"}),
    "certificate with another kind of key": (
        OWN_CERTIFICATE.format("ec -pkeyopt ec_paramgen_curve:P-256") +
        f"printf '\tleftcert=gateway\n\tleftid=@gw.example.org\n' >>/etc/ipsec.conf; {AGAIN}",
        {"certificates": "WARN"}),
    "certificate begins later": (f"{CERTIFICATE} -w 5 -v 12", {"certificates": "FAIL"}),
    "certificate without key": (f"{CERTIFICATE} -v 12; certutil -L -d sql:/var/lib/ipsec/nss -n gateway -a >/pem; "
                                "rm /var/lib/ipsec/nss/*; certutil -N -d sql:/var/lib/ipsec/nss --empty-password; "
                                "certutil -A -d sql:/var/lib/ipsec/nss -n gateway -t ,, -i /pem; "
                                "echo '\tleftcert=gateway' >>/etc/ipsec.conf", {"certificates": "FAIL"}),
    "certificate without its CA": (
        "cd /run; exec >log 2>&1; openssl req -x509 -newkey rsa:2048 -nodes -days 400 -keyout ca.key -out ca.pem -subj "
        "/CN=ca; "
        "openssl req -newkey rsa:2048 -nodes -keyout key -out request -subj /CN=gateway; openssl x509 -req -in request "
        "-CA ca.pem -CAkey ca.key -CAcreateserial -days 400 -out pem; openssl pkcs12 -export -passout pass: -inkey key "
        "-in pem -name gateway -out p12; pk12util -i p12 -d sql:/var/lib/ipsec/nss -W ''; "
        "echo '\tleftcert=gateway' >>/etc/ipsec.conf", {"certificates": "WARN"}),
    "certificate of a CA that has ended": (
        "cd /run; exec >log 2>&1; date | sha512sum >/noise; certutil -S -x -d sql:/var/lib/ipsec/nss -n ca -s CN=ca "
        "-t CT,, -z /noise -g 2048 -m 7 -w -12 -v 6 -2 <<end\ny\n\ny\nend\ncertutil -S -d sql:/var/lib/ipsec/nss -n "
        "gateway -s CN=gateway -c ca -t ,, -z /noise -g 2048 -m 8 -v 12; echo '\tleftcert=gateway' >>/etc/ipsec.conf",
        {"certificates": "FAIL FAIL"}),
    "same networks, other peer": ("sed s/fine/rival/';'s/192.0.2.2/192.0.2.3/ /etc/ipsec.conf | tail -n +2 >/rival; "
                                  "cat /rival >>/etc/ipsec.conf; ipsec auto --add rival", {
                                      "overlap": "WARN", "psk": "FAIL"}),
    "conn twice": ("tail -n +2 /etc/ipsec.conf >/again; cat /again >>/etc/ipsec.conf", {"overlap": "WARN"}),
    "pluto was updated": ("cp /usr/libexec/ipsec/pluto /new; mv /new /usr/libexec/ipsec/pluto", {"versions": "WARN"}),
    "pluto of another libreswan": (
        "kill -KILL $(cat /run/pluto/pluto.pid); while pidof pluto; do sleep 0.1; done; mkdir -p /usr/local/libexec/"
        "ipsec; cp /usr/libexec/ipsec/pluto /usr/local/libexec/ipsec; rm -f /run/pluto/*; /usr/local/libexec/ipsec/"
        "pluto; until /usr/libexec/ipsec/whack --listen; do sleep 0.1; done", {"versions": "WARN"}),
    "policy wants FIPS": ("mkdir -p /etc/crypto-policies; echo FIPS >/etc/crypto-policies/config", {"fips": "WARN"}),
    "policy not included": ("mkdir -p /etc/crypto-policies/back-ends; >/etc/crypto-policies/back-ends/libreswan.config",
                            {"crypto_policy": "WARN"}),
    "denied by SELinux": ("mkdir -p /var/log/audit; echo 'type=AVC msg=audit(1:1): avc:  denied  { read } for pid=1 "
                          "comm=\"pluto\"' >/var/log/audit/audit.log; mount -t tmpfs none /sys/fs; mkdir "
                          "/sys/fs/selinux; echo 1 >/sys/fs/selinux/enforce", {"selinux": "WARN"}),
    "prelink": ("touch /usr/sbin/prelink", {"prelink": "WARN"}),
    "pluto does not answer": ("kill -STOP $(cat /run/pluto/pluto.pid)", {
        "pluto": "FAIL", "loaded": "SKIP", "up": "SKIP", "fips": "SKIP", "peers": "SKIP"}),
    "pluto is gone": ("kill -KILL $(cat /run/pluto/pluto.pid)", NO_PLUTO),
    "pluto's file is gone": ("rm /run/pluto/pluto.pid", {"pluto": "WARN"}),
    "pluto can't be executed": ("chmod -x /usr/libexec/ipsec/pluto", {"installed": "FAIL"}),
    "another program called pluto": (
        "kill -KILL $(cat /run/pluto/pluto.pid); while pidof pluto; do sleep 0.1; done; cp /usr/bin/sleep /pluto; "
        "/pluto 1000 >/dev/null 2>&1 & echo $! >/run/pluto/pluto.pid; echo 'import socket, time\ns = socket.socket("
        "type=socket.SOCK_DGRAM)\ns.bind((\"\", 500))\ntime.sleep(1000)' >/listen; python3 /listen >/dev/null 2>&1 & "
        "until ss -lun | grep -q :500; do sleep 0.1; done",
        {**NO_PLUTO, "udp500": "FAIL", "udp4500": "FAIL", "versions": "WARN"}),
}

#: What looks broken and is not
FINE = {
    "firewall with all that it takes": "iptables -P INPUT DROP; iptables -A INPUT -m limit --limit 9/s -j LOG; "
    "iptables -A INPUT -p udp -m multiport --dports 500,4500 -m comment --comment 'IKE; -j DROP' -j ACCEPT; iptables "
    "-A INPUT -p 50 -j ACCEPT; iptables -A INPUT -p icmp --icmp-type destination-unreachable -j ACCEPT",
    "only from the peer": "iptables -A INPUT -s 192.0.2.2 -j ACCEPT; iptables -P INPUT DROP",
    "nft with all that it takes": f"{NFT_INPUT}{NFT_RULE}icmpv6 type nd-router-advert drop; {NFT_RULE}tcp dport 22 "
    f"drop; {NFT_RULE}udp dport {{ 400-500, 4500 }} log prefix '\"drop {{ \"' accept; {NFT_RULE}meta l4proto {{ esp, "
    f"ah }} accept; {NFT_RULE}icmp type destination-unreachable accept",
    "only what is for this host": "iptables -P INPUT DROP; iptables -N elsewhere; iptables -A INPUT -j elsewhere; "
    "iptables -A elsewhere -m addrtype --dst-type LOCAL -j RETURN; iptables -A elsewhere -j DROP; iptables -A INPUT "
    "-d 192.0.2.1 -p udp -m multiport --dports 500,4500 -j ACCEPT; iptables -A INPUT -p esp -j ACCEPT; iptables -A "
    "INPUT -p icmp -j ACCEPT",
    "named set": f"{NFT_INPUT}nft add set inet f peers '{{ type ipv4_addr; elements = {{ 192.0.2.2, 192.0.2.3 }}; }}'; "
    f"{NFT_RULE}ip saddr @peers accept",
    "masquerade behind an exception": "iptables -t nat -A POSTROUTING -d 10.2.0.0/16 -j ACCEPT; iptables -t nat -A "
    "POSTROUTING -o eth0 -j MASQUERADE",
    "masquerade without IPsec": f"{LEGACY_NAT}-o eth0 -m policy --dir out --pol none -j MASQUERADE",
    "masquerade elsewhere": "iptables -t nat -A POSTROUTING -o eth1 -j MASQUERADE; iptables -t nat -A POSTROUTING -s "
    "10.9.0.0/16 -j MASQUERADE; iptables -t nat -A POSTROUTING ! -d 10.0.0.0/8 -j MASQUERADE",
    "nft masquerade but for IPsec": f"{NFT_NAT}rt ipsec exists accept; nft add rule ip n masks oifname eth0 masquerade",
    "forwards IPsec": "iptables -P FORWARD DROP; iptables -A FORWARD -m policy --dir in --pol ipsec -j ACCEPT; "
    "iptables -A FORWARD -m policy --dir out --pol ipsec -j ACCEPT",
    "answers may leave": "iptables -P OUTPUT DROP; iptables -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; "
    "iptables -A OUTPUT -p esp -j ACCEPT",
    "dormant table": f"{NFT_INPUT}nft add table inet f '{{ flags dormant; }}'",
    "VTI behind masquerade": "sed -i 's,subnet=.*,subnet=0.0.0.0/0,' /etc/ipsec.conf; printf '\tmark=5/-1\n\tvti-"
    "interface=vti0\n\tvti-routing=no\n' >>/etc/ipsec.conf; iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE; "
    f"{AGAIN}",
    "another spelling of an IPv6 address": f"{SIX}sed -i s/fd00:9::2/fd00:9:0:0::0002/ /etc/ipsec.secrets",
    "IDs of /etc/hosts": "echo 192.0.2.1 west >>/etc/hosts; echo 192.0.2.2 East.example >>/etc/hosts; "
    "sed -i 's/192.0.2.1/west/; s/192.0.2.2/east.example/' /etc/ipsec.secrets",
    "IDs in another case": "printf '\tleftid=@West.\n\trightid=e@EAST\n' >>/etc/ipsec.conf; "
    f"echo '@west E@east : PSK \"12345678\"' >/etc/ipsec.secrets; {AGAIN}",
    "secret of our end alone": "sed -i s/192.0.2.2// /etc/ipsec.secrets",
    "secret for any peer": "sed -i s/192.0.2.2/%any/ /etc/ipsec.secrets",
    "secret for all": "sed -i s/.*:/:/ /etc/ipsec.secrets",
    "time with a unit": "printf '\tikelifetime=8h\n\trekeyfuzz=50%%\n\treplay-window=64\n' >>/etc/ipsec.conf",
    "same networks in another spelling": "sed -i s,10.2.0.0/24,10.2.0.9/24, /etc/ipsec.conf",
    "IPv6, and IPv4 closed": f"{SIX}iptables -P INPUT DROP; iptables -P FORWARD DROP; iptables -t nat -A POSTROUTING "
    "-j MASQUERADE",
    "IPv6 closed": "ip6tables -P INPUT DROP; ip6tables -P FORWARD DROP; ip6tables -t nat -A POSTROUTING -j MASQUERADE",
    "IPv6: nft with all that it takes": f"{SIX}{NFT_INPUT}{NFT_RULE}udp dport {{ 500, 4500 }} accept; {NFT_RULE}meta "
    f"l4proto esp accept; {NFT_RULE}meta l4proto ipv6-icmp accept",
    "IPv6: an interface that is no router": f"{SIX}echo 0 >/proc/sys/net/ipv6/conf/eth1/forwarding",
    "keys of its own": f"python3 {PYZ} newhostkey; id=$(python3 {PYZ} showhostkey --list | sed 's/.*ckaid: //'); "
    f"python3 {PYZ} showhostkey --left --ckaid $id | grep = >>/etc/ipsec.conf; echo '\tleftckaid='$id "
    ">>/etc/ipsec.conf; echo '\trightrsasigkey=0sAwEAAc0ffee' >>/etc/ipsec.conf; "
    "test $(grep -c left.*key= /etc/ipsec.conf) = 1",
    "key in hexadecimal": f"""
python3 {PYZ} newhostkey
id=$(python3 {PYZ} showhostkey --list | sed 's/.*ckaid: //')
key=$(python3 {PYZ} showhostkey --left --ckaid $id | sed -n 's/.*=0s//p' | base64 -d | od -An -v -tx1 | tr -d ' \n')
echo "\tleftrsasigkey=0x$key" >>/etc/ipsec.conf""",
    "secrets that begin with a comment": "sed -i '1i # ours' /etc/ipsec.secrets; sed -i '1i \\\n' /etc/ipsec.secrets",
    "conn whose name looks like a pair": "sed -i 's,conn fine,conn fine/2,' /etc/ipsec.conf; ipsec auto --delete fine; "
    "ipsec auto --add fine/2",
    "hub between spokes": """
for n in 2 3; do cat >>/etc/ipsec.conf <<end
conn spoke$n
\tauto=add
\tauthby=secret
\tleft=192.0.2.1
\tright=192.0.2.$n
\tleftsubnet=10.$((8 - n)).0.0/24
\trightsubnet=10.$((3 + n)).0.0/24
end
done
sed -i 's/192.0.2.2/%any/' /etc/ipsec.secrets
ipsec auto --rereadsecrets; ipsec auto --add spoke2; ipsec auto --add spoke3
grep -A6 spoke2 /etc/ipsec.conf | grep leftsubnet=10.6; grep -A6 spoke3 /etc/ipsec.conf | grep rightsubnet=10.6""",
    "passthrough, and NAT": """
cat >>/etc/ipsec.conf <<end
conn lan
\tauto=ondemand
\ttype=passthrough
\tauthby=never
\tleft=192.0.2.1
\tright=0.0.0.0
\tleftsubnet=10.1.0.0/24
\trightsubnet=10.9.0.0/24
end
ipsec auto --add lan; ipsec auto --route lan
iptables -t nat -A POSTROUTING -d 10.9.0.0/24 -j MASQUERADE; iptables -P FORWARD DROP
for dir in in out; do iptables -A FORWARD -m policy --dir $dir --pol ipsec -j ACCEPT; done""",
    "not invalid": "iptables -P INPUT DROP; iptables -A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT",
    "rules within a rule": f"""{NFT_INPUT}
nft -f - <<end
add rule inet f input iifname "eth0" jump {{
    udp dport {{ 500, 4500 }} accept
    meta l4proto {{ esp, icmp }} accept
}}
end""",
    "AH alone": "echo '\tphase2=ah' >>/etc/ipsec.conf; iptables -P INPUT DROP; for p in ah icmp udp; do iptables -A "
    "INPUT -p $p -j ACCEPT; done",
    "comments and includes in the secrets": "mv /etc/ipsec.secrets /etc/keys; printf '# no secret here\\ninclude "
    "/etc/keys\\n' >/etc/ipsec.secrets; chmod 644 /etc/ipsec.secrets",
    "conn that is not loaded": "printf 'conn other\\n\\tleft=192.0.2.1\\n\\tright=192.0.2.3\\n\\tauthby=secret"
    "\\n' >>/etc/ipsec.conf",
    "a client": "printf '\tnarrowing=yes\n\tleftmodecfgclient=yes\n' >>/etc/ipsec.conf; sed -i "
    f"s,subnet=.*,subnet=0.0.0.0/0, /etc/ipsec.conf; iptables -P FORWARD DROP; echo 0 >{SYSCTL}/ip_forward; {AGAIN}",
    "loose filter": f"echo 2 >{SYSCTL}/conf/eth0/rp_filter",
    "no gateway": f"echo 0 >{SYSCTL}/ip_forward; echo 1 >{SYSCTL}/conf/default/send_redirects; "
    f"sed -i s/leftsubnet.*// /etc/ipsec.conf; {AGAIN}",
    "no ss, no pidof": "rm -f /usr/bin/ss /bin/ss /sbin/ss /usr/sbin/ss /bin/pidof /usr/bin/pidof /sbin/pidof",
}


def kernel_lacks() -> dict[str, str]:
    """What verify has to find on every host of this kernel, by the kernel's own word for it."""
    config = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    return {**({} if "CONFIG_INET_ESP=" in config else {"esp": "FAIL"}),
            **({} if "CONFIG_CRYPTO_GCM=" in config else {"algorithms": "WARN"})}


#: How a fix begins that needs a person, a file or another kernel
FOR_PEOPLE = ("vi ", "ss ", "ip -s ", "ipsec import ", "ipsec up ", "ipsec restart", "ipsec showhostkey", "boot ",
              "timedatectl", "ipsec why ", "apt-get install ",
              "systemctl", "fips-mode-setup", "ausearch", "prelink")


def levels(result: Result) -> dict[str, str]:
    """The findings that are not OK: levels by check; each tells why and what to do, and the status counts the FAILs.

    Checks that have nothing to check in a configuration are left out.
    """
    findings = json.loads(result.stdout)
    assert result.status == sum(finding["level"] == "FAIL" for finding in findings)
    assert all(bool(finding["why"]) == (finding["level"] != "OK") for finding in findings)
    assert all(finding["mend"] for finding in findings if finding["level"] in ("WARN", "FAIL"))
    bad: dict[str, str] = {}
    for finding in findings:
        if finding["level"] != "OK" and finding["cause"] != "unused":
            bad[finding["check"]] = f"{bad.get(finding['check'], '')} {finding['level']}".strip()
    return bad


def verify(machine: Machine) -> dict[str, str]:
    return levels(machine.ipsec("verify", "--json", "--timeout", "3"))


def saved_rules(machine: Machine) -> list[str]:
    """The rules that an administrator saves with the four programs of iptables: none may be lost to a mend."""
    programs = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")
    return [line.partition("[")[0] for name in programs for line in machine.run([name]).check().stdout.splitlines()
            if line.startswith(("-A", ":"))]


def mend(machine: Machine, checks: Collection[str]) -> set[str]:
    """Do what verify says that mends these checks, by a shell; the checks for which that is for no person to do."""
    findings = json.loads(machine.ipsec("verify", "--json", "--timeout", "3", *checks).stdout)
    bad = [finding for finding in findings if finding["level"] in ("WARN", "FAIL")]
    left = {finding["check"] for finding in bad
            if finding["mend"].startswith(FOR_PEOPLE) or "GATEWAY" in finding["mend"]}
    left |= {"pluto"} if left else set()  # it may not start before that is done
    machine.run(["sh", "-c", f"mkdir -p /run/bin; ln -sf {PYZ} /run/bin/ipsec"]).check()
    before = saved_rules(machine)
    for line in dict.fromkeys(finding["mend"] for finding in bad if finding["check"] not in left):
        result = machine.run(["sh", "-c", f"PATH=/run/bin:$PATH; {line}"])
        if "pluto refuses connection" in result.stderr:
            return set()
        result.check()
    after = saved_rules(machine)
    assert not [line for line in before if line not in after]
    return {finding["check"] for finding in bad} - left


def prepare(machine: Machine) -> None:
    machine.address("192.0.2.1/24")
    machine.address("10.1.0.1/24", "eth1")
    machine.ip("route", "add", "default", "dev", "eth0")
    machine.run(["sh", "-c", f"echo 1 >{SYSCTL}/ip_forward; for n in {SYSCTL}/conf/*/send_redirects; do echo 0 >$n; "
                             "done"]).check()


@pytest.fixture
def healthy(gateway: Machine, pluto: Callable[..., Pluto]) -> Pluto:
    prepare(gateway)
    return pluto(gateway, CONFIG, SECRETS)


@pytest.fixture
def bookworm(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> Iterator[Machine]:
    machine = root("bookworm")
    prepare(machine)
    daemon = pluto(machine, CONFIG, SECRETS)
    yield machine
    if daemon.running:
        daemon.stop(signal.SIGKILL)


def test_healthy_hosts_have_no_findings(healthy: Pluto) -> None:
    before, loaded = healthy.machine.changes(), healthy.output.count("loading secrets")
    hung_up = healthy.output.count("Broken pipe")  # by who waited for it to be ready
    assert verify(healthy.machine) == kernel_lacks()
    findings = json.loads(healthy.machine.ipsec("verify", "--json").stdout)
    assert {finding["check"] for finding in findings if finding["cause"] == "unused"} == UNUSED
    lines = healthy.machine.ipsec("verify").stdout.splitlines()
    assert "Checking that pluto is running                    \t[OK]" in lines
    assert "\x1b" not in "".join(lines)
    assert healthy.output.count("loading secrets") == loaded > 0  # the original reloads them
    assert healthy.output.count("Broken pipe") == hung_up
    assert set(healthy.machine.changes()) == set(before)


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found(bookworm: Machine, what: str) -> None:
    script, expected = BROKEN[what]
    bookworm.run(["sh", "-c", script]).check()
    bad_checks = verify(bookworm)
    if "leftcert" in script:  # where certificates count the clock does, which nothing may set here
        assert bad_checks.pop("clock", "WARN") == "WARN"
    lacks = kernel_lacks()
    if "phase2=ah" in script:  # AH needs none of the ciphers
        lacks.pop("algorithms", None)
    assert bad_checks == {**lacks, **expected}
    mended = mend(bookworm, expected)
    assert not mended & verify(bookworm).keys()


def test_a_ca_that_is_there_is_not_missed(bookworm: Machine) -> None:
    bookworm.run(["sh", "-c", BROKEN["certificate without its CA"][0]]).check()
    assert "NO CA" in bookworm.ipsec("verify", "certificates").stdout
    bookworm.run("certutil -A -d sql:/var/lib/ipsec/nss -n ca -t ,, -i /run/ca.pem".split()).check()
    assert "[OK]" in bookworm.ipsec("verify", "certificates").stdout


@pytest.mark.parametrize("what", FINE)
def test_what_is_not_broken_is_not_found(bookworm: Machine, what: str) -> None:
    bookworm.run(["sh", "-ec", FINE[what]]).check()
    lacks = kernel_lacks()
    if "phase2=ah" in FINE[what]:  # AH needs none of the ciphers
        lacks.pop("algorithms", None)
    assert verify(bookworm) == lacks


@pytest.mark.parametrize("release", ["bullseye", "bookworm", "trixie"])
def test_masquerading_without_the_packets_of_tunnels(root: Callable[..., Machine], release: str) -> None:
    """nft of bullseye prints the rule without its conditions."""
    machine = root(release)
    prepare(machine)
    machine.write("/etc/ipsec.conf", CONFIG)
    machine.run("iptables -t nat -A POSTROUTING -m policy --dir out --pol none -j MASQUERADE".split()).check()
    assert "[OK]" in machine.ipsec("verify", "nat").stdout
    machine.run("iptables -t nat -I POSTROUTING -p udp -m udp ! --dport 500:4500 -j MASQUERADE".split()).check()
    assert "[NAT]" in machine.ipsec("verify", "nat").stdout


def test_it_takes_options_and_tells_of_its_checks(bookworm: Machine) -> None:
    def says(*words: str, status: int = 0) -> str:
        result = bookworm.ipsec("verify", *words)
        assert (result.status, "Traceback" in result.stderr) == (status, False)
        return result.stdout + result.stderr

    assert says("--help").startswith("Usage: ipsec verify")
    assert 'unknown option "--bogus"' in says("--bogus", status=2)
    assert "\x1b" not in says("--nocolour", "pluto")
    assert "did you mean rp_filter?" in says("--explain", "rpfilter", status=2)
    listed = [line.split()[0] for line in says("--explain").splitlines()]
    assert says("--explain", "list") == says("--explain=list") == says("--explain")
    told = says("--explain", *listed)
    assert all(f"{name}: " in told for name in listed)
    assert max(map(len, told.splitlines())) < 80
    assert [finding["check"] for finding in json.loads(says("--json", "udp500", "pluto"))] == ["pluto", "udp500"]
    closed = bookworm.run(["bash", "-c", f"trap '' 0; {bookworm.python} {PYZ} verify | true; exit ${{PIPESTATUS[0]}}"])
    assert closed.status in (0, 1, 141) and closed.stderr.count("\n") <= 1, closed.stderr


def test_a_strict_filter_drops_what_comes_by_another_way(root: Callable[..., Machine]) -> None:
    """With two wires to the peer, which sends by the one and is answered by the other."""
    west, east = root("bookworm"), root("bookworm")
    west.link(east, "192.0.2.1/24", "192.0.2.2/24")
    west.link(east, "198.51.100.1/24", "198.51.100.2/24", "eth1")
    west.ip("route", "add", "192.0.2.2", "dev", "eth1")
    west.write("/etc/ipsec.conf", CONFIG.replace("\tleftsubnet=10.1.0.0/24\n\trightsubnet=10.2.0.0/24\n", ""))
    east.run(["sh", "-c", f"echo 1 >{SYSCTL}/conf/eth0/arp_ignore"]).check()

    def heard() -> bool:
        return not east.run(["ping", "-c", "1", "-W", "5", "192.0.2.1"]).status

    def word() -> str:
        return west.ipsec("verify", "rp_filter").stdout.splitlines()[2].partition("\t")[2].removeprefix("FAIL ")

    west.run(["sh", "-c", f"echo 0 >{SYSCTL}/conf/all/rp_filter"]).check()
    assert (heard(), word()) == (True, "[OK]")
    west.run(["sh", "-c", f"echo 1 >{SYSCTL}/conf/eth0/rp_filter"]).check()
    assert (heard(), word()) == (False, "[ENABLED]")
    assert west.ipsec("verify", "rp_filter").status == 1


def test_many_interfaces_are_one_finding(bookworm: Machine) -> None:
    """The original counts two errors for each, and 256 of them are the status 0."""
    bookworm.run(["sh", "-ec", "for n in $(seq 130); do ip link add d$n type dummy || ip link add d$n type veth; done; "
                               f"for n in {SYSCTL}/conf/*/rp_filter; do echo 1 >$n; done"]).check()
    assert verify(bookworm) == {**kernel_lacks(), "rp_filter": "WARN"}


def test_status_does_not_wrap(bookworm: Machine) -> None:
    """256 failures of the original's are the status 0."""
    bookworm.ipsec("initnss")
    conn = "conn c{}\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tleftcert=gone\n\tauto=add\n"
    bookworm.write("/etc/ipsec.conf", "".join(map(conn.format, range(256))))
    result = bookworm.ipsec("verify", "certificates")
    assert (result.status, result.stdout.count("[MISSING]")) == (255, 256)


def test_who_is_not_root_is_told_what_could_not_be_checked(bookworm: Machine) -> None:
    result = bookworm.ipsec("verify", "--json", user=65534)
    by_check = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert by_check["secrets"]["level"] == by_check["firewall"]["level"] == by_check["udp500"]["level"] == "SKIP"
    assert by_check["secrets"]["mend"] == "sudo ipsec verify secrets"
    assert {finding["cause"] for finding in by_check.values() if finding["level"] == "SKIP"} == {"root", "unused"}
    text = bookworm.ipsec("verify", user=65534).stdout
    assert "checks need root: sudo ipsec verify (" in text and text.count("sudo") == 1
    assert "1 check needs root: sudo ipsec verify secrets" in bookworm.ipsec("verify", "secrets", user=65534).stdout
    bookworm.run(["chmod", "600", "/etc/ipsec.conf"]).check()
    bookworm.run(["chmod", "700", "/var/lib/ipsec/nss"]).check()
    result = bookworm.ipsec("verify", "--json", user=65534)
    by_check = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert [by_check[name]["level"] for name in ("config", "nss", "pluto")] == ["SKIP"] * 3, result.stdout


def test_a_mounted_disk(healthy: Pluto, root: Callable[..., Machine], tmp_path: Path) -> None:
    """From a host without libreswan's files: what lies on the disk is checked, and nothing is written."""
    for directory in ("etc", "usr/libexec/ipsec", "var/lib/ipsec/nss"):
        healthy.machine.copy_out(f"/{directory}", tmp_path / directory)
    rescue = root("bookworm", binds=[(str(tmp_path), "/sysroot", False)])
    rescue.run(["rm", "-r", "/etc/ipsec.conf", "/etc/ipsec.secrets", "/usr/libexec/ipsec"]).check()
    before = rescue.run(["find", "/sysroot", "-printf", "%p %T@ %s\n"]).stdout
    result = rescue.ipsec("--root", "/sysroot", "verify", "--json")
    assert levels(result) == {}
    assert {"installed", "config", "secrets", "nss"} <= {finding["check"] for finding in json.loads(result.stdout)}
    assert "checks need the running system, and can't run under --root (" in result.stderr
    lines = rescue.ipsec("--root", "/sysroot", "verify").stdout.splitlines()
    assert "under --root" in lines[-2] and "rp_filter" in lines[-2] and lines[-1].startswith("0 failed, 0 warnings, ")
    rescue.write("/sysroot/etc/ipsec.conf", CONFIG + "\tbanana=yes\n")
    assert levels(rescue.ipsec("--root", "/sysroot", "verify", "--json")) == {"config": "FAIL"}
    rescue.write("/sysroot/etc/ipsec.conf", CONFIG)
    after = rescue.run(["find", "/sysroot", "-printf", "%p %T@ %s\n"]).stdout
    assert [line.split()[0] for line in after.splitlines()] == [line.split()[0] for line in before.splitlines()]


# As without the package that a distribution puts half of the modules in
FEWER_MODULES = ("set -e; grep -v {0} /lib/modules/$(uname -r)/modules.dep >/run/dep; mount -t tmpfs none /lib/modules/"
                 "$(uname -r); cp /run/dep /lib/modules/$(uname -r)/modules.dep; rmmod {0} {0}_generic || :; ")
MODULES_AGAIN = "umount /lib/modules/$(uname -r)"

#: What breaks a gateway whose kernel has ESP, one after the other, with what sets it right again
IN_A_KERNEL = {
    "no-esp": (FEWER_MODULES.format("esp4"), MODULES_AGAIN, {"esp": "FAIL"}),
    "no-cipher": (FEWER_MODULES.format("camellia") + "echo '\tesp=camellia256-sha2_512' >>/etc/ipsec.conf",
                  MODULES_AGAIN, {"algorithms": "FAIL"}),
    "yesteryear": ("date +%s >/now; date -s 2001-01-01", "date -s @$(cat /now)", {"clock": "FAIL"}),
}


def test_in_a_kernel_that_has_esp(gateways: Gateways) -> None:
    """With a tunnel up there is nothing to complain of; ESP taken away and a wrong clock are found."""
    gateways.make_databases()
    for name in NAMES:
        gateways.write(name, "ipsec.conf", CONFIG)
        gateways.write(name, "ipsec.secrets", SECRETS, 0o600)
        gateways.step(f"{name}-forwards", name, ["sh", "-c", f"echo 1 >{SYSCTL}/ip_forward; for n in {SYSCTL}/conf/*/"
                                                 "send_redirects; do echo 0 >$n; done"])
        gateways.ipsec(f"{name}-start", name, "start")
    gateways.ipsec("up", "west", "auto", "--up", "fine")
    for name in NAMES:
        gateways.ipsec(f"{name}-verify", name, "verify", "--json")
    gateways.step("strict", "west", ["sh", "-c", f"for n in {SYSCTL}/conf/*/rp_filter; do echo 1 >$n; done"])
    gateways.step("strict-ping", "west", ["ping", "-c", "1", "-I", "10.1.0.1", "10.2.0.1"])
    gateways.ipsec("strict-verify", "west", "verify", "--json")
    gateways.step("loose", "west", ["sh", "-c", f"for n in {SYSCTL}/conf/*/rp_filter; do echo 0 >$n; done"])
    for name in NAMES:
        gateways.ipsec(f"{name}-stop", name, "stop")
    for what, (breaks, mends, _) in IN_A_KERNEL.items():
        gateways.step(f"{what}-broken", "west", ["sh", "-c", breaks])
        gateways.ipsec(f"{what}-verify", "west", "verify", "--json", *IN_A_KERNEL[what][2])
        gateways.step(f"{what}-mended", "west", ["sh", "-c", mends])
    results = gateways.run()
    assert results["up"].status == 0
    for name in NAMES:
        assert levels(results[f"{name}-verify"]) == {}
    # the kernel asks the filter of nothing that it has decrypted
    assert results["strict-ping"].status == 0 and levels(results["strict-verify"]) == {"rp_filter": "WARN"}
    assert {what: levels(results[f"{what}-verify"]) for what in IN_A_KERNEL} == {
        what: expected for what, (_, _, expected) in IN_A_KERNEL.items()}


def test_a_container_without_the_right(bookworm: Machine) -> None:
    """Root without NET_ADMIN: pluto can't work there, and nothing else is certain of what only NET_ADMIN may ask."""
    bookworm.ipsec("stop")
    drop = ["setpriv", "--bounding-set", "-net_admin,-sys_module", "--inh-caps", "-net_admin,-sys_module"]
    result = bookworm.run([*drop, bookworm.python, str(PYZ), "verify"])
    assert "FAIL [NO RIGHT]" in result.stdout and "--cap-add NET_ADMIN" in result.stdout
    assert "reboot" not in result.stdout + result.stderr
    findings = json.loads(bookworm.run([*drop, bookworm.python, str(PYZ), "verify", "--json"]).stdout)
    rights = {finding["check"] for finding in findings if finding["cause"] == "rights"}
    assert rights == {"firewall", "forward_rules", "nat"}


def test_the_last_line_counts(bookworm: Machine) -> None:
    findings = json.loads(bookworm.ipsec("verify", "--json").stdout)
    counts = {level: sum(finding["level"] == level for finding in findings) for level in ("FAIL", "WARN", "SKIP", "OK")}
    result = bookworm.ipsec("verify")
    assert result.stdout.splitlines()[-1] == (
        f"{counts['FAIL']} failed, {counts['WARN']} warning{'s' * (counts['WARN'] != 1)}, {counts['SKIP']} not "
        f"checked, {counts['OK']} ok")
    assert (result.status, result.stderr) == (counts["FAIL"], "")
