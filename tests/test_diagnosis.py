"""Why a connection is down, from lines as plutos of several releases write them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import ipsec
from ipsec import (
    CAUSE_BY_NAME,
    CAUSES,
    Attempt,
    Config,
    Diagnoser,
    Facts,
    Finding,
    Host,
    LogLine,
    UpWait,
    before_text,
    cause_of,
    connection_state,
    diagnosis_lines,
    explained_lines,
    explains,
    last_clues,
    loading_complaint,
    read_attempts,
    read_log_line,
    read_pluto_log,
    tried_text,
)

PEER = "203.0.113.9"
INITIATES = {"4.3": "initiating IKEv2 connection", "4.10": "initiating IKEv2 connection",
             "3.25": "initiating v2 parent SA", "3.32": "initiating v2 parent SA",
             "5.2": "initiating IKEv2 connection to 203.0.113.9 using UDP"}
MAIN = "initiating IKEv1 Main Mode connection"


def attempts_of(*lines: str, name: str = "office", peers: Sequence[str] = (PEER,)) -> list[Attempt]:
    """Return the attempts in lines; one without a connection in front is of the connection's state #1."""
    full = [line if line.startswith(('"', "packet", "ERROR", "|")) else f'"office" #1: {line}' for line in lines]
    return read_attempts([LogLine(None, line) for line in full], name, peers)


def cause(*lines: str, peers: Sequence[str] = (PEER,)) -> str:
    """Return the name of the cause that lines tell, empty for none."""
    clues = last_clues(attempts_of(*lines, peers=peers))
    return clues[0].cause.name if clues else ""


@pytest.mark.parametrize(("lines", "name"), [
    # the initiator is refused
    ([INITIATES["3.25"], "IKE SA authentication request rejected: AUTHENTICATION_FAILED"], "auth-refused"),
    ([INITIATES["5.2"], "IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED",
      "encountered fatal error in state IKE_AUTH_I"], "auth-refused"),
    ([INITIATES["4.3"], "dropping unexpected IKE_SA_INIT message containing NO_PROPOSAL_CHOSEN notification; message "
      "payloads: N; missing payloads: SA,KE,Ni", "STATE_PARENT_I1: 60 second timeout exceeded after 7 retransmits.  No "
      "response (or no acceptable response) to our first IKEv2 message"], "ike-peer"),
    ([MAIN, "ignoring informational payload NO_PROPOSAL_CHOSEN, msgid=00000000, length=12"], "ike-peer"),
    ([MAIN, "IKE SA established {auth=PRESHARED_KEY}", "ignoring informational payload NO_PROPOSAL_CHOSEN, msgid=1"],
     "esp-peer"),
    ([MAIN, "ignoring informational payload INVALID_ID_INFORMATION, msgid=00000000, length=12"], "id-refused"),
    ([MAIN, "ISAKMP SA established {auth=PRESHARED_KEY}", "ignoring secured informational payload "
      "INVALID_ID_INFORMATION, msgid=1"], "ts-peer"),
    ([INITIATES["4.3"], "IKE_AUTH response contained the error notification TS_UNACCEPTABLE"], "ts-peer"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with FAILED_CP_REQUIRED",
      "CREATE_CHILD_SA failed with error notification TS_UNACCEPTABLE"], "mode-config"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with INTERNAL_ADDRESS_FAILURE"], "pool"),
    ([INITIATES["5.2"], "CREATE_CHILD_SA failed with error notification INVALID_KE_PAYLOAD response suggesting DH20 "
      "instead of MODP2048"], "dh"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with SOMETHING_NEW"], "peer-refused"),
    # nobody answers; what pluto guesses is no evidence
    ([INITIATES["5.2"], "IKE_SA_INIT_I: 60 second timeout exceeded after 7 retransmits.  No response (or no acceptable "
      "response) to our first IKEv2 message"], "silent"),
    ([INITIATES["4.3"], "STATE_PARENT_I2: 60 second timeout exceeded after 7 retransmits.  Possible authentication "
      "failure: no acceptable response to our first encrypted message"], "silent-auth"),
    ([MAIN, "STATE_MAIN_I3: 60 second timeout exceeded after 7 retransmits.  Possible authentication failure: no "
      "acceptable response to our first encrypted message"], "silent-main"),
    ([MAIN, "IKE SA established", "STATE_QUICK_I1: 60 second timeout exceeded after 7 retransmits.  No acceptable "
      "response to our first Quick Mode message: perhaps peer likes no proposal"], "silent-quick"),
    ([INITIATES["5.2"], "IKE_SA_INIT_I: retransmission; will wait 0.5 seconds for response"], "waiting"),
    # this host knows
    ([INITIATES["4.3"], "No matching PSK found for connection:office", "AUTH mismatch: Received AUTH != computed AUTH"],
     "psk-missing"),
    ([MAIN, "Can't authenticate: no preshared key found for `@a' and `@b'"], "psk-missing"),
    ([INITIATES["4.3"], "unable to locate my private key for RSA Signature"], "key-missing"),
    ([INITIATES["5.2"], "private key matching CKAID 'ab' not found: no key"], "key-missing"),
    ([INITIATES["4.3"], "we require IKEv2 peer to have ID '@b', but peer declares '@a'"], "id-expected"),
    ([INITIATES["5.2"], "Peer ID '@a' mismatched on first found connection and no better connection found",
      "probable authentication failure (mismatch of preshared secrets?): malformed payload in packet"], "id-expected"),
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP failed in '
      "EVENT_RETRANSMIT: Network is unreachable (errno 101)", "PARENT_I1: 3 second timeout exceeded"], "route"),
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP failed in '
      "EVENT_RETRANSMIT: Operation not permitted (errno 1)"], "send-refused"),
    ([INITIATES["5.2"], "ERROR: asynchronous network error report on eth0 (192.0.2.1:500), complainant 203.0.113.9: "
      "Connection refused [errno 111, origin ICMP type 3 code 3 (not authenticated)]"], "port-closed"),
    (["we cannot identify ourselves with either end of this connection.  1 or 2 are not usable"], "not-oriented"),
    (["cannot initiate connection without knowing peer IP address (kind=CK_TEMPLATE)"], "peer-address"),
    # the responder
    (["sent IKE_SA_INIT reply {}", "AUTH mismatch: Received AUTH != computed AUTH",
      "responding to IKE_AUTH message (ID 1) from 203.0.113.9:500 with encrypted notification AUTHENTICATION_FAILED"],
     "psk-differs"),
    (["sent IKE_SA_INIT response to 203.0.113.9:UDP/500 {}", "responding to IKE_AUTH message (ID 1) from "
      "203.0.113.9:500 with encrypted notification AUTHENTICATION_FAILED", "encountered fatal error in state R"],
     "refused-here"),
    (["sent IKE_SA_INIT response to 203.0.113.9:UDP/500 {}"], "half-open"),
    (["packet from 203.0.113.9:500: initial Main Mode message received on 192.0.2.1:500 but no connection has been "
      "authorized with policy PSK"], "unknown-peer"),
    (["packet from 203.0.113.9:500: ignoring IKEv1 packet as policy is set to silently drop all IKEv1 packets"],
     "version-refused"),
    (["no local proposal matches remote proposals 1:IKE:ENCR=3DES"], "ike-here"),
    (["Oakley Transform [3DES] refused"], "ike-here"),
    (["no local proposal matches remote proposals 1:ESP:ENCR=3DES"], "esp-here"),
    (["we require PFS but Quick I1 SA specifies no GROUP_DESCRIPTION"], "pfs"),
    (["policy does not allow OAKLEY_PRESHARED_KEY authentication.  Attribute OAKLEY_AUTHENTICATION_METHOD"],
     "auth-method"),
    (["No IKEv2 connection found with compatible Traffic Selectors"], "ts-here"),
    (["IKE_AUTH request proposes that does not match any permanent IKEv2 connection; responding with TS_UNACCEPTABLE"],
     "ts-here"),
    (["cannot respond to IPsec SA request because no connection is known for 10.0.0.0/8"], "ts-here"),
    (["ikev2 lease_an_address failure no free address in addresspool"], "pool"),
    (["XAUTH: User eve: Authentication Failed: Incorrect Username or Password"], "xauth"),
    (["NSS: ERROR: IPsec certificate CN=x invalid: SEC_ERROR_REVOKED_CERTIFICATE: Peer's Certificate has been revoked.",
      "NSS: end certificate invalid", "X509: certificate payload rejected for this connection"], "cert-revoked"),
    (["certificate CN=x failed IPsec verification", "NSS ERROR: Peer's Certificate issuer is not recognized."],
     "cert-issuer"),
    (["NSS: ERROR: IPsec certificate CN=x invalid: SEC_ERROR_EXPIRED_CERTIFICATE: Peer's Certificate has expired."],
     "cert-expired"),
    (["certificate subjectAltName extension does not match ID_FQDN 'a.example.org'",
      "Peer ID '@a' mismatched on first found connection and no better connection found"], "cert-name"),
    (["X509: Certificate rejected for this connection"], "cert-rejected"),
    (['ERROR: "office" #2: netlink response for Add SA esp.1@203.0.113.9: Function not implemented (errno 38)',
      "responding to IKE_AUTH message (ID 1) with encrypted notification TS_UNACCEPTABLE"], "kernel"),
    (['"office" #2: ERROR: netlink response for Add SA esp.1@203.0.113.9 included errno 93: Protocol not supported'],
     "kernel"),
    (["cannot route -- route already in use for \"other\""], "overlap"),
    # after it was up
    (["initiator established Child SA using #1", "ESTABLISHED_IKE_SA: 60 second timeout exceeded after 7 retransmits.  "
      "No response (or no acceptable response) to our IKEv2 message"], "peer-gone"),
    ([MAIN, "IPsec SA established tunnel mode", "received Delete SA payload: self-deleting ISAKMP State #1"],
     "deleted"),
    # what releases say of other causes: the network and this host
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP '
      'failed in EVENT_RETRANSMIT: Permission denied (errno 13)'], "send-denied"),
    ([INITIATES["4.3"], '"office" #1: ERROR: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP '
      'failed in EVENT_RETRANSMIT. Errno 22: Invalid argument'], "route"),
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP '
      'failed in EVENT_RETRANSMIT: Cannot assign requested address (errno 99)'], "not-oriented"),
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP '
      'failed in EVENT_RETRANSMIT: Message too long (errno 90)'], "too-big"),
    ([INITIATES["5.2"], 'ERROR: "office" #1: send on eth0 from 192.0.2.1:500 to 203.0.113.9:500 using UDP '
      'failed in EVENT_RETRANSMIT: No buffer space available (errno 105)'], "link"),
    ([INITIATES["5.2"], "ERROR: asynchronous network error report on eth0 (192.0.2.1:500) for message to "
      "203.0.113.9 port 500, complainant 198.51.100.7: No route to host [errno 113, origin ICMP type 3 code "
      "13 (not authenticated)]"], "rejected-way"),
    ([INITIATES["5.2"], '"office" #1: ERROR: asynchronous network error report on eth0 (192.0.2.1:500), '
      'complainant 198.51.100.7: No route to host [errno 113, origin ICMP type 3 code 1 (not authenticated)]'],
     "route"),
    ([INITIATES["5.2"], "fragmenting this 70000 byte message into 1228 byte chunks leads to too many frags"],
     "too-big"),
    (["initiating UDP requires listen-udp=yes"], "not-listening"),
    (['cannot instantiate connection: resolution of "gw.example.org" failed: Name or service not known'],
     "peer-address"),
    ([INITIATES["5.2"], "DNS: IPSECKEY not found or usable"], "dns-key"),
    ([INITIATES["5.2"], "fetching IDr IPsec key using DNS failed"], "dns-key"),
    (["NAT: cannot switch to NAT port and interface TCP does not support NAT"], "nat-t"),
    ([INITIATES["4.3"], "NAT: cannot float to 203.0.113.9:4500 as no such interface"], "nat-t"),
    ([INITIATES["5.2"], "TCP: socket 19: connecting to 203.0.113.9:4500: Connection refused (errno 111)"],
     "tcp"),
    (["no kernel support for nic-offload[=crypto]"], "offload"),
    (["existing ipsec-interface ipsec1 is not valid: IFLA_XFRM_IF_ID attribute 7 does not match "
      "ipsec-interface ID 1"], "interface"),
    (['peer Virtual IP 10.3.0.0/24 overlapping 10.3.0.0/16 from "other" is forbidden (neither agrees)'],
     "overlap"),
    (["kernel algorithm does not like: CAMELLIA_CBC key_len 192 is incorrect"], "kernel"),
    # keys, certificates, IDs, log-ins
    ([INITIATES["5.2"], "AUTH signature calculation failed", "encountered fatal error in state I1"],
     "key-missing"),
    ([INITIATES["3.25"], "Can't find the certificate or private key from the NSS CKA_ID"], "key-missing"),
    ([INITIATES["5.2"], "NSS: ERROR: PK11_Sign() function failed"], "key-missing"),
    (["left certificate 'gw' is not yet valid"], "clock"),
    (["NSS: ERROR: IPsec certificate CN=x invalid: SEC_ERROR_OCSP_SERVER_ERROR: The OCSP server experienced "
      "an error"], "ocsp"),
    (["FIPS: rejecting peer cert with key size 1024 under 2048: CN=x"], "cert-usage"),
    (["certificate does not contain ID_IP subjectAltName=192.0.2.9"], "cert-name"),
    (["authentication method RSA-PSS not supported"], "auth-method"),
    (["RSA Signature NOT verified"], "signature"),
    (["verifying AUTH hash using PK11_Verify() failed: SEC_ERROR_BAD_SIGNATURE"], "signature"),
    (["hash length in I2 packet (20) does not equal hash length (32) of negotiated PRF (HMAC_SHA2_256)"],
     "psk-differs"),
    (["Unsupported identity type (ID_KEY_ID) in Phase 1 (Parent) ID Payload"], "id-expected"),
    ([INITIATES["5.2"], "IKE SA authentication request rejected by peer: AUTHORIZATION_FAILED"],
     "auth-refused"),
    ([MAIN, "ignoring unsecured informational payload CERTIFICATE_UNAVAILABLE, length=12"], "auth-refused"),
    (["PAM: #3: main-process: aborting authentication PAM-process for 'eve'", "XAUTH: unknown "
      "authentication method requested to authenticate user 'eve'"], "xauth"),
    ([INITIATES["5.2"], "IKE_INTERMEDIATE decapsulate failed: bad ciphertext"], "key-exchange"),
    (["Failed to create TLS IO layer", "Keying material export failed"], "eap"),
    # proposals, networks, addresses
    ([INITIATES["3.25"], "AUTH response contained the error notification NO_PROPOSAL_CHOSEN"], "esp-peer"),
    ([MAIN, "ignoring informational payload ATTRIBUTES_NOT_SUPPORTED, msgid=00000000, length=12"],
     "ike-peer"),
    ([MAIN, "IKE SA established", "ignoring secured informational payload BAD_PROPOSAL_SYNTAX, msgid=1"],
     "esp-peer"),
    ([MAIN, "ignoring informational payload UNSUPPORTED_EXCHANGE_TYPE, msgid=00000000, length=12"],
     "aggressive"),
    (["OAKLEY_GROUP 22 not supported for PFS"], "pfs"),
    (["KE has 256 byte DH public value; 384 required"], "dh"),
    (["IKE_SA_INIT KE payload is 256 bytes; 384 required"], "dh"),
    (["CREATE_CHILD_SA request failed, responder SA processing returned NO_PROPOSAL_CHOSEN"], "esp-here"),
    (["remote accepted the invalid proposal 1:ESP:ENCR=AES_CBC"], "esp-here"),
    (['compression proposed by 203.0.113.9, but policy for "office" forbids it'], "compression"),
    (["policy dictates Transport Mode, but peer requested Tunnel Mode"], "mode"),
    (["received IPsec Security Label on connection not configured with labeled ipsec"], "label"),
    (["Child SA's Traffic Selector TSr {192.0.2.0/24} for rekey do not match the established IPsec SA; "
      "responding with TS_UNACCEPTABLE"], "ts-here"),
    (["our client subnet returned doesn't match my proposal - us: 10.1.0.0/24 vs them: 10.9.0.0/24"],
     "ts-here"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with SINGLE_PAIR_REQUIRED"], "ts-peer"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with INVALID_SELECTORS"], "ts-peer"),
    ([INITIATES["5.2"], "CREATE_CHILD_SA failed with error notification NO_ADDITIONAL_SAS"], "sa-limit"),
    ([INITIATES["5.2"], "CREATE_CHILD_SA failed with error notification TEMPORARY_FAILURE"], "peer-busy"),
    ([INITIATES["5.2"], "CREATE_CHILD_SA failed with error notification CHILD_SA_NOT_FOUND"], "peer-lost-sa"),
    (["CREATE_CHILD_SA no such IPsec SA to rekey SA(0x12345678) Protocol ESP"], "peer-lost-sa"),
    ([INITIATES["5.2"], "response for Child SA #2 was rejected with TS_UNACCEPTABLE; initiating delete of "
      "Child SA (IKE SA will remain UP)"], "child-rejected"),
    ([INITIATES["5.2"], "response for Child SA #2 was rejected (NO_PROPOSAL_CHOSEN) and IKE SA does not "
      "have policy UP", 'ERROR: "office" #2: netlink response for Add SA esp.1@203.0.113.9: Function not '
      'implemented (errno 38)'], "kernel"),
    (['XAUTH: connection addresspool 10.9.0.0/24 for the user "eve" cannot start at address zero'], "pool"),
    (["expecting ISAKMP_CFG_REQUEST, got ISAKMP_CFG_ACK instead; message ignored"], "mode-config"),
    # a rekey with PFS
    ([INITIATES["4.3"], "IPsec SA established tunnel mode", "sent CREATE_CHILD_SA request to rekey IPsec SA",
      "dropping unexpected CREATE_CHILD_SA message containing NO_PROPOSAL_CHOSEN notification; message payloads: SK; "
      "encrypted payloads: N; missing payloads: SA,Ni,TSi,TSr"], "esp-peer"),
    # later requests for a Child SA in the same IKE SA say less than the first one
    ([INITIATES["5.2"], "initiator established IKE SA; authenticated peer", "prepare-client command exited with "
      "status 7", "initiating Child SA using IKE SA #1", "ESTABLISHED_IKE_SA: retransmission; will wait 1 seconds for "
      "response", "sent CREATE_CHILD_SA request to create Child SA using IKE SA #1", "ESTABLISHED_IKE_SA: "
      "retransmission; will wait 4 seconds for response"], "updown"),
    ([INITIATES["5.2"], "IKE_AUTH response rejected Child SA with INTERNAL_ADDRESS_FAILURE", "sent CREATE_CHILD_SA "
      "request", "CREATE_CHILD_SA failed with error notification TEMPORARY_FAILURE", "sent CREATE_CHILD_SA request",
      "CREATE_CHILD_SA failed with error notification TEMPORARY_FAILURE"], "pool"),
    (["leasing IPv4 address failed: address pool exhausted", "cannot install kernel policy 0.0.0.0/0===10.9.0.1/32; in "
      'use by established Child SA "office"[2] 203.0.113.9 #4 with routing routed-tunnel', "sent CREATE_CHILD_SA "
      "request", "TEMPORARY_FAILURE", "sent CREATE_CHILD_SA request", "TS_UNACCEPTABLE", "sent CREATE_CHILD_SA request",
      "TS_UNACCEPTABLE"], "pool"),
    ([INITIATES["5.2"], "initiator established Child SA using #1", "CREATE_CHILD_SA failed with error notification "
      "NO_PROPOSAL_CHOSEN", "sent INFORMATIONAL request to delete established Child SA using IKE SA #1"], "esp-peer"),
    # one end uses XAUTH; a key that is too short to sign
    (["responding to Main Mode", "policy mandates Extended Authentication (XAUTH) with PSK of initiator (we are "
      "responder).  Attribute OAKLEY_AUTHENTICATION_METHOD", "no acceptable Oakley Transform"], "xauth-ends"),
    ([MAIN, "IKE SA established {auth=PRESHARED_KEY}", "STATE_MODE_CFG_I1: 60 second timeout exceeded after 7 "
      "retransmits.  No response (or no acceptable response) to our IKEv1 message"], "mode-config"),
    ([MAIN, "STATE_XAUTH_I0: 60 second timeout exceeded after 7 retransmits.  No response"], "xauth-ends"),
    (["responding to Main Mode", "sent Main Mode R1", "ISAKMP SA established {auth=PRESHARED_KEY}"], ""),
    (["responding to Main Mode", "policy does not allow Extended Authentication (XAUTH) of initiator (we are "
      "responder).  Attribute OAKLEY_AUTHENTICATION_METHOD", "no acceptable Oakley Transform"], "xauth-ends"),
    ([INITIATES["5.2"], "NSS: RSA DSS sign function failed: SEC_ERROR_OUTPUT_LEN: security library: output length "
      "error.", "IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED"], "key-weak"),
    (["rejecting received zero-length RSA signature", "Digital Signature authentication using rsasig failed in I2 "
      "Auth Payload"], "unsigned"),
    (["authentication failed: rejecting received zero-length signature"], "unsigned"),
    # the exchange itself
    (["packet from 203.0.113.9:500: DOS cookies do not match - dropping message"], "cookie"),
    (["packet from 203.0.113.9:500: dropping new IKE_SA_INIT exchange: too many half open IKE SAs"],
     "busy-here"),
    ([INITIATES["4.3"], "redirect loop, stop initiating IKEv2 exchanges"], "redirect"),
    ([INITIATES["5.2"], "received GW Identity is not listed in accept-redirect-to conn option"], "redirect"),
    (["initiator established Child SA using #1", "MOBIKE: AF change switching between v4 and v6 not "
      "supported"], "mobike"),
    (["ignoring fragment as peer never proposed fragmentation"], "fragments"),
    (["failed to match authenticator"], "corrupt"),
    ([INITIATES["4.10"], "dropping unexpected IKE_SA_INIT message containing INVALID_SYNTAX notification; "
      "message payloads: N; missing payloads: SA,KE,Ni"], "malformed"),
    (["IKE_SA_INIT message contained an unknown critical payload type (53)", "message IKE_SA_INIT contained "
      "an unknown critical payload type (53)"], "malformed"),
    ([INITIATES["3.32"], "STATE_PARENT_I1: received unauthenticated v2N_INVALID_MESSAGE_ID - ignored"],
     "peer-refused"),
    ([INITIATES["3.25"], "IKE SA authentication request rejected: INVALID_MESSAGE_ID"], "peer-refused"),
    (["initiator established Child SA using #1", "IKE SA expired (--dontrekey)"], "expired"),
    (["initiator established Child SA using #1", "received Delete SA(0x1234) payload: deleting IPSEC State "
      "#2"], "deleted"),
    (["responding to Main Mode", "retransmitting in response to duplicate packet; already STATE_MAIN_R2"],
     "half-open"),
    (["packet from 203.0.113.9:500: Quick Mode message is for a non-existent (expired or deleted?) ISAKMP SA"],
     "stale"),
    (["packet from 203.0.113.9:500: INFORMATIONAL request has no corresponding IKE SA; message dropped"],
     "stale"),
])
def test_the_cause_is_found_in_lines_of_the_log(lines: list[str], name: str) -> None:
    assert cause(*lines) == name


@pytest.mark.parametrize("line", [
    "Received unauthenticated INVALID_KE_PAYLOAD response to DH MODP2048; resending with "
    "suggested DH MODP3072",
    "received anti-DDOS COOKIE response, resending IKE_SA_INIT request with COOKIE payload",
    "non-critical payload ignored because it contains an unknown or unexpected payload "
    "type (128) at the outermost level",
    "protocol/port in Phase 1 ID Payload MUST be 0/0 or 17/500 but are 17/0 (attempting to continue)",
    'peer Virtual IP 10.3.0.0/24 overlapping 10.3.0.0/16 from "other" permitted by '
    "mutual consent (and kernel support)",
    "No Certificate Authority available! Certificate accepted without verification.",
    "Kernel supports NIC esp-hw-offload",
    "loaded private key matching left certificate 'gw'",
    "DOS mode on; responding to IKE_SA_INIT with cookie notification request",
    "X509: connection allows unmatched IKE ID and certificate SAN",
    "TCP: accepting connection",
    "Connection does not allow MOBIKE, ignoring v2N_NO_NATS_ALLOWED",
    "redirecting to: 203.0.113.10",
    "policy dictates Tunnel Mode, ignoring peer's request for Transport Mode"])
def test_progress_is_no_cause(line: str) -> None:
    assert cause_of(line) is cause_of(line, ike_up=True) is None


def test_only_the_last_attempt_counts() -> None:
    old = [INITIATES["4.3"], "IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED"]
    new = ['"office" #5: initiating IKEv2 connection', '"office" #5: dropping unexpected IKE_SA_INIT message '
           "containing NO_PROPOSAL_CHOSEN notification"]
    assert cause(*old, *new) == "ike-peer"
    assert cause(*old, new[0]) == "auth-refused"  # the new one has not failed yet
    assert cause(*old, new[0], '"office" #5: retransmission; will wait 1 seconds for response') == "auth-refused"
    assert cause(*old, new[0], '"office" #6: initiator established Child SA using #5') == ""
    assert cause(*old, '"office": terminating SAs using this connection') == "auth-refused"
    assert cause("initiator established Child SA using #1", '"office": terminating SAs using this connection') == ""
    again = '"office" #2: initiating IKEv2 connection'  # pluto's next attempt, cut short
    assert cause(*old, again, '"office": terminating SAs using this connection') == "auth-refused"
    assert cause(*old, again, "initiator established Child SA using #2",
                 '"office": terminating SAs using this connection') == ""


def test_what_the_updown_script_says_while_it_cleans_up_does_not_count() -> None:
    assert cause(INITIATES["5.2"], "IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED",
                 '"office" #2: unroute-client output: RTNETLINK answers: Network is unreachable') == "auth-refused"
    assert cause(INITIATES["5.2"], '"office" #2: unroute-client command exited with status 2') == ""
    assert cause(INITIATES["5.2"], '"office" #2: up-client command exited with status 2') == "updown"


def test_lines_of_others_do_not_count() -> None:
    refused = "no suitable connection found with IKEv2 policy"
    assert cause(f"packet from 203.0.113.99:500: {refused}") == ""
    assert cause(f"packet from 203.0.113.9:500: {refused}") == "unknown-peer"
    assert cause(f"packet from [2001:db8::9]:500: {refused}", peers=["2001:db8::9"]) == "unknown-peer"
    assert cause(f"packet from 203.0.113.99:500: {refused}", peers=["%any"]) == "unknown-peer"
    assert cause('"office2" #1: AUTH mismatch', '"offic" #1: AUTH mismatch', '"office/x" #1: AUTH mismatch') == ""
    assert cause('"office/1x2" #1: AUTH mismatch') == cause('"office"[3] 203.0.113.9 #7: AUTH mismatch')
    assert cause('"office/1x2" #1: AUTH mismatch') == "psk-differs"


def test_how_often_and_by_whom() -> None:
    lines = [LogLine(time.time(), f'"office" #{number}: initiating IKEv2 connection') for number in (1, 3, 5)]
    assert tried_text(read_attempts(lines, "office", [PEER])).startswith("3 times since ")
    assert tried_text(attempts_of("sent IKE_SA_INIT reply {}")) == "once, by the peer"
    assert tried_text([]) == before_text([]) == ""
    assert "deleted" in before_text(attempts_of("IPsec SA established", "received Delete SA payload: replace CHILD SA"))


def test_a_sign_is_found_in_the_cause_that_has_it() -> None:
    """No sign is hidden by a cause that stands before its own in the table, unless that has the same words."""
    for one in CAUSES:
        assert len(one.short.split()) <= 3, one.name
        assert "{" not in one.command.format(conn="c", peer="p")
        for sign in one.signs:
            phase, parts = ipsec.split_sign(sign)
            found = cause_of(" x ".join(parts), ike_up=phase == "2")
            assert found is not None and CAUSES.index(found) <= CAUSES.index(one), (one.name, sign)


def test_three_words_for_lists() -> None:
    log = [LogLine(None, f'"office" #1: {text}') for text in (MAIN, "AUTH mismatch")]
    assert [clue.cause.short for clue in last_clues(read_attempts(log, "office", [PEER]))] == ["PSKs differ"]
    assert not last_clues(read_attempts(log, "other", [PEER]))


@pytest.mark.parametrize("line", [
    'Nov 23 06:12:08.123456: "office" #1: hello: you', '2026-11-23T06:12:08+0100 gw pluto[12]: "office" #1: hello: you',
    'Nov 23 06:12:08 gw pluto[12]: "office" #1: hello: you', '"office" #1: hello: you'])
def test_a_line_without_what_stands_before_it(line: str) -> None:
    entry = read_log_line(line)
    assert entry.text == '"office" #1: hello: you'
    assert (entry.when is None) == line.startswith('"')


def test_the_log_is_read_from_its_end(tmp_path: Path) -> None:
    log, conf = tmp_path / "pluto.log", tmp_path / "ipsec.conf"
    conf.write_text(f"config setup\n\tlogfile={log}\n")
    host = Host({}, conf=str(conf))
    filler = "Nov 23 06:12:08.123456: | debugging\n" * 1000
    with log.open("w") as file:
        file.write('Nov 23 06:12:07.000000: "office" #1: AUTH mismatch\n')
        while file.tell() < ipsec.LOG_TAIL + 1000:
            file.write(filler)
        file.write('Nov 23 06:12:09.000000: "office" #9: AUTH mismatch\n')
    found = read_pluto_log(host, Config(host))
    assert [entry.text for entry in found] == ['"office" #9: AUTH mismatch']
    with log.open("a") as file:
        file.write("Nov 23 06:12:10.000000: Starting Pluto (Libreswan Version 4.10)\n")
    assert [entry.text[:14] for entry in read_pluto_log(host, Config(host))] == ["Starting Pluto"]


def test_a_log_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "ipsec.conf"
    conf.write_text(f"config setup\n\tlogfile={tmp_path}/pluto.log\n")
    host = Host({}, conf=str(conf))
    monkeypatch.setattr(host, "which", lambda program: None)
    monkeypatch.setattr(ipsec, "SYSLOGS", ())
    with pytest.raises(ipsec.Missing, match="log was not found"):
        read_pluto_log(host, Config(host))
    monkeypatch.setattr(ipsec, "tail_of_file", Mock(side_effect=PermissionError(13, "no")))
    with pytest.raises(PermissionError):
        read_pluto_log(host, Config(host))


def test_why_pluto_refused_to_load_it() -> None:
    lines = [LogLine(None, text) for text in (
        '"office": failed to add connection: left certificate \'gw\' is expired or not yet valid', '"other": added')]
    found = loading_complaint(lines, "office")
    assert found is not None and "expired" in found.text and loading_complaint(lines, "other") is None
    assert loading_complaint([*lines, LogLine(None, '"office": added IKEv2 connection')], "office") is None
    assert loading_complaint([LogLine(None, 'Failed to add connection "office": ike string error: x')], "office")
    refusal = '"office": failed to add IKEv1 connection: global ikev1-policy does not allow IKEv1 connections'
    assert loading_complaint([LogLine(None, refusal)], "office")
    assert cause(refusal) == "version-refused"


def entry(**fields: Any) -> dict[str, Any]:
    """Return a connection as pluto's status has it."""
    return {"name": "office", "instance": "", "oriented": True, "up": False, "routing": "unrouted", "child_sa": None,
            "policy": ["PSK"], "options": {}, "local": {"host": "192.0.2.1"}, "remote": {"host": PEER}, **fields}


@pytest.mark.parametrize(("told", "state"), [
    ([entry()], "down"), ([entry(up=True)], "up"), ([entry(oriented=False)], "not oriented"),
    ([entry(routing="prospective erouted")], "on demand"), ([entry(routing="routed-ondemand")], "on demand"),
    ([entry(remote={"host": "%any"})], "waiting"),
    ([entry(remote={"host": "%any"}), entry(instance="[1]", up=True)], "up"),
    ([entry(up=True), entry()], "partly up"),
])
def test_state_of_a_connection(told: list[dict[str, Any]], state: str) -> None:
    assert connection_state(told) == state


@pytest.fixture
def diagnoser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Diagnoser:
    """A host with the connection office and a secret, and a pluto that has loaded it and could not bring it up."""
    conf, secrets = tmp_path / "ipsec.conf", tmp_path / "ipsec.secrets"
    conf.write_text(f"config setup\n\tsecretsfile={secrets}\n"
                    f"conn office\n\tleft=192.0.2.1\n\tright={PEER}\n\tauto=start\n\tauthby=secret\n"
                    "conn spare\n\tleft=192.0.2.1\n\tright=203.0.113.8\n")
    secrets.write_text(': PSK "SwordfishForTheOffice"\n')
    host = Host({}, conf=str(conf))
    facts = Facts(host, 1.0)
    monkeypatch.setattr(facts, "loaded", lambda: {"office": [entry()]})
    diagnoser = Diagnoser(host, 1.0, facts)
    monkeypatch.setattr(diagnoser, "_findings", lambda names, conn: [])
    monkeypatch.setattr(diagnoser, "_unprotected", lambda name: None)
    return diagnoser


def set_log(diagnoser: Diagnoser, *texts: str) -> None:
    """Give the diagnoser these lines as pluto's log."""
    log = [LogLine(None, text) for text in texts]
    diagnoser.log = lambda: log  # type: ignore[method-assign]


def test_a_diagnosis_has_cause_evidence_and_no_secret(diagnoser: Diagnoser) -> None:
    set_log(diagnoser, '"office" #1: initiating IKEv2 connection',
            '"office" #1: IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED for '
            "SwordfishForTheOffice\x1b[0m")
    diagnosis = diagnoser.diagnose("office")
    assert (diagnosis.state, diagnosis.level, diagnosis.cause, diagnosis.short) == (
        "down", "FAIL", "auth-refused", "peer refuses authentication")
    assert "another pre-shared key (PSK)" in diagnosis.means  # narrowed down by authby=
    text = "\n".join(explained_lines(diagnosis))
    assert "AUTHENTICATION_FAILED" in text and "tried: once" in text
    assert "Swordfish" not in text and "\x1b" not in text
    assert len(diagnosis_lines(diagnosis)) == 2


def test_a_connection_with_both_methods_names_both(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(policy=["RSASIG", "PSK"])]})
    set_log(diagnoser, '"office" #1: initiating IKEv2 connection',
            '"office" #1: IKE SA authentication request rejected by peer: AUTHENTICATION_FAILED')
    means = diagnoser.diagnose("office").means
    assert "the PSK" in means and "the certificate or the RSA key" in means


def test_what_this_host_shows_stands_in_where_the_log_has_no_reason(diagnoser: Diagnoser,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    set_log(diagnoser, '"office" #1: initiating IKEv2 connection', '"office" #1: encountered fatal error in state I1')
    missing = Finding("certificates", "x", "FAIL", "NO KEY", 'the database has no private key for "gw"', "ipsec import")
    monkeypatch.setattr(diagnoser, "_findings", lambda names, conn: [missing] if "certificates" in names else [])
    diagnosis = diagnoser.diagnose("office")
    assert (diagnosis.cause, diagnosis.command) == ("certificates", "ipsec import")
    assert "no private key" in diagnosis.means
    set_log(diagnoser)
    monkeypatch.setattr(diagnoser, "_findings", lambda names, conn: [
        Finding("firewall", "x", "FAIL", "BLOCKED", "UDP 500 from anywhere is dropped", "nft ...")])
    assert "firewall" in diagnoser.diagnose("office").means
    assert explains(Finding("firewall", "x", "WARN", "BLOCKED", "UDP 4500 from anywhere"), "half-open")
    assert not explains(Finding("firewall", "x", "WARN", "BLOCKED", "ICMP from anywhere"), "silent-auth")


def test_the_policy_narrows_a_cause_down(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, versions in ((["PSK", "IKEV1_ALLOW"], "IKEv1 only"), (["IKEv1", "PSK"], "IKEv1 only"),
                            (["IKEV1_ALLOW", "IKEV2_ALLOW"], "IKEv1 and IKEv2"), (["IKEv2"], "IKEv2 only")):
        assert ipsec.ike_versions(words) == versions
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(policy=["IKEv1", "PSK"])]})
    set_log(diagnoser, f'"office" #1: {MAIN}', '"office" #1: ignoring informational payload NO_PROPOSAL_CHOSEN')
    assert "no pre-shared key (PSK)" in diagnoser.diagnose("office").means
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(policy=["IKEv2", "PSK"])]})
    assert "pre-shared" not in diagnoser.diagnose("office").means
    set_log(diagnoser, "packet from 203.0.113.9:500: no suitable connection found with IKEv2 policy")
    assert "this connection allows IKEv2 only" in diagnoser.diagnose("office").means


def test_honest_where_nothing_is_known(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(diagnoser, "log", deny)
    diagnosis = diagnoser.diagnose("office")
    assert (diagnosis.level, diagnosis.short) == ("SKIP", "cause unknown")
    assert "can't be read (Permission denied)" in diagnosis.means
    monkeypatch.setattr(diagnoser.facts, "loaded", Mock(side_effect=PermissionError(13, "no")))
    assert diagnoser.diagnose("office").state == "unknown"

    def refuse(silent: bool) -> None:
        monkeypatch.setattr(diagnoser.facts, "loaded", Mock(side_effect=ipsec.NoPluto("no answer", silent=silent)))

    refuse(silent=True)
    monkeypatch.setattr(diagnoser.facts, "pluto_signs", list)
    diagnosis = diagnoser.diagnose("office")
    assert diagnosis.cause == "pluto-down" and diagnosis.command in ("ipsec start", "apt-get install libreswan")
    monkeypatch.setattr(diagnoser.facts, "pluto_signs", lambda: ["UDP port 500 is in use"])
    diagnosis = diagnoser.diagnose("office")
    assert (diagnosis.level, diagnosis.state) == ("SKIP", "unknown") and "UDP port 500 is in use" in diagnosis.means
    refuse(silent=False)
    diagnosis = diagnoser.diagnose("office")
    assert (diagnosis.level, diagnosis.state) == ("SKIP", "unknown") and "no answer" in diagnosis.means


def test_an_ike_sa_without_an_ipsec_sa(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer did not stop halfway, and no tunnel ended: one end waits for something."""
    monkeypatch.setattr(diagnoser, "_findings", lambda *_: [])
    up = ['"office" #1: responding to Main Mode', '"office" #1: sent Main Mode R1',
          '"office" #1: IKE SA established {auth=PRESHARED_KEY}']
    set_log(diagnoser)
    assert diagnoser.diagnose("office").short == "not tried"
    set_log(diagnoser, *up)
    diagnosis = diagnoser.diagnose("office")
    assert "no request for an IPsec SA after that" in diagnosis.means and diagnosis.short == "cause unknown"
    set_log(diagnoser, *up, '"office" #1: received Delete SA payload: self-deleting ISAKMP State #1')
    assert "failed at the peer" in diagnoser.diagnose("office").means
    set_log(diagnoser, *up, '"office" #2: IPsec SA established tunnel mode',
            '"office" #3: CREATE_CHILD_SA failed with error notification NO_PROPOSAL_CHOSEN')
    assert "perhaps only the DH group for PFS differs" in diagnoser.diagnose("office").means
    set_log(diagnoser, *up, '"office" #2: IPsec SA established tunnel mode', '"office" #1: deleting IKE SA')
    assert "probably the peer deleted it" in diagnoser.diagnose("office").means
    set_log(diagnoser, *up, '"office" #2: IPsec SA established tunnel mode',
            '"office" #1: received Delete SA payload: self-deleting ISAKMP State #1')
    assert "the tunnel ended" in diagnoser.diagnose("office").means


def test_a_connection_that_is_not_loaded(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    set_log(diagnoser)
    assert "auto= is ignore" in diagnoser.diagnose("spare").means
    diagnosis = diagnoser.diagnose("ofice")
    assert diagnosis.check == "the spelling of the name (did you mean office?)"
    assert "neither pluto nor " in diagnosis.means
    monkeypatch.setattr(diagnoser.facts, "loaded", dict)
    set_log(diagnoser, "\"office\": failed to add connection: left certificate 'gw' is expired or not yet valid")
    diagnosis = diagnoser.diagnose("office")
    assert diagnosis.state == "not loaded" and "expired" in diagnosis.means and diagnosis.command == "ipsec add office"


def test_names_are_those_that_pluto_has_or_should_have(diagnoser: Diagnoser, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry()], "nm": [entry(name="nm")]})
    conf = tmp_path / "ipsec.conf"
    text = conf.read_text() + "conn twice\n\tleft=192.0.2.1\n\tleft=192.0.2.2\n\tright=203.0.113.7\n\tauto=add\n"
    conf.write_text(text)
    diagnoser.facts.config = Config(diagnoser.host)
    assert diagnoser.names() == ["office", "twice", "nm"]
    monkeypatch.setattr(diagnoser.facts, "loaded", dict)
    set_log(diagnoser)
    assert "duplicate key left" in diagnoser.diagnose("twice").means


def test_without_a_configuration_the_names_are_those_of_pluto(diagnoser: Diagnoser, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipsec.conf").unlink()
    diagnoser.facts.config = Config(diagnoser.host)
    assert diagnoser.names() == ["office"]
    assert "neither pluto nor " in diagnoser.diagnose("ofice").means
    monkeypatch.setattr(diagnoser.facts, "loaded", Mock(side_effect=PermissionError(13, "no")))
    monkeypatch.setattr(diagnoser.facts, "pluto_signs", lambda: ["the control socket exists"])
    with pytest.raises(ipsec.Failure, match="unknown") as caught:
        diagnoser.names()
    assert caught.value.status == ipsec.LSB_UNKNOWN
    monkeypatch.setattr(diagnoser.facts, "pluto_signs", list)
    assert diagnoser.names() == []


def test_findings_about_other_connections_are_left_out(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    reasons = ["conn office: no key", "conn office2: no key", "no PSK for a and b of conn office", "UDP 500 is dropped",
               "conn office.old has no end here"]
    check = ipsec.Check("psk", "x", lambda facts: iter([("FAIL", "BAD", why, "") for why in reasons]),
                         live=False, checks="", matters="", fix="")
    monkeypatch.setitem(ipsec.CHECKS, "psk", check)
    assert [finding.why for finding in diagnoser._findings("psk", "office")] == [reasons[0], reasons[2], reasons[3]]


def test_the_address_of_this_host_is_not_taken_for_the_peer(diagnoser: Diagnoser) -> None:
    any_peer = entry(remote={"host": "%any"})
    assert diagnoser._peer_name("office", [any_peer]) == PEER
    assert diagnoser._peer_name("spare", [entry(remote={"host": "%any"}, local={"host": "203.0.113.8"})]) == "192.0.2.1"
    assert diagnoser._peer_name("other", [any_peer]) == "PEER"


def test_a_peer_that_asks_from_another_address(diagnoser: Diagnoser) -> None:
    set_log(diagnoser, "packet from 203.0.113.77:500: ISAKMP_v2_IKE_SA_INIT message received on 192.0.2.1:500 but no "
            "suitable connection found with IKEv2 policy")
    diagnosis = diagnoser.diagnose("office")
    assert diagnosis.cause == "unknown-peer" and "203.0.113.77" in diagnosis.means and PEER in diagnosis.means


def test_waiting_for_a_client_or_a_packet_is_fine(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    set_log(diagnoser, '"office"[1] 203.0.113.9 #1: IPsec SA established',
            '"office"[1] 203.0.113.9 #1: received Delete SA payload: delete CHILD SA #2 now')
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(remote={"host": "%any"})]})
    assert (diagnoser.diagnose("office").state, diagnoser.diagnose("office").level) == ("waiting", "OK")
    set_log(diagnoser)
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(routing="routed-ondemand")]})
    assert (diagnoser.diagnose("office").state, diagnoser.diagnose("office").level) == ("on demand", "OK")


@pytest.mark.parametrize(("came", "went", "level"), [(0, 0, "OK"), (252, 252, "OK"), (0, 252, "WARN"), (252, 0, "OK")])
def test_traffic_of_a_tunnel_that_is_up(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch, came: int, went: int,
                                        level: str) -> None:
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(up=True, child_sa=2)]})
    monkeypatch.setattr(ipsec, "exact_traffic", lambda host, timeout: {
        2: {"bytes_in": came, "bytes_out": went, "added": 1700000000}})
    diagnosis = diagnoser.diagnose("office")
    assert diagnosis.state == "up" and diagnosis.level == level


def test_nat_before_the_tunnel_is_said_to_be_in_clear(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnoser.facts, "loaded", lambda: {"office": [entry(up=True, child_sa=2)]})
    monkeypatch.setattr(ipsec, "exact_traffic", lambda host, timeout: {})
    monkeypatch.setattr(diagnoser, "_in_clear", lambda name: ("packets leave in clear", "iptables ..."))
    diagnosis = diagnoser.diagnose("office")
    assert diagnosis.level == "FAIL" and "in clear" in diagnosis.means


@pytest.mark.parametrize(("fate", "cause", "words"), [
    ({"fate": "encrypt"}, "", ""), ({"fate": "hold"}, "", ""),
    ({"fate": "unroutable"}, "unroutable", "have no route"),
    ({"why": "no policy is for it"}, "unprotected", "leave in clear: no policy is for it"),
    ({"why": "disable_xfrm is set on eth0"}, "unprotected", "disable_xfrm is set on eth0"),
    ({"policy": {"index": 1}}, "", ""), ({"device": "lo"}, "", ""), ({"exceptions": [{}]}, "", ""),
    ({"fate": "block", "why": "ipsec1 drops packets that no policy is for"}, "blocked", "the kernel drops packets"),
])
def test_packets_that_miss_a_tunnel_that_is_up(diagnoser: Diagnoser, monkeypatch: pytest.MonkeyPatch,
                                               fate: dict[str, Any], cause: str, words: str) -> None:
    whole = {"fate": "clear", "device": "eth0", "policy": None, "exceptions": [], "why": "", "destination": PEER,
             **fate}
    tunnel = ipsec.Tunnel(diagnoser.facts.conns[0], "left", ["192.0.2.1"], [], [PEER], "eth0", PEER,
                          "192.0.2.1")
    monkeypatch.undo()
    monkeypatch.setattr(Facts, "tunnels", property(lambda self: [tunnel]))
    monkeypatch.setattr(ipsec.PacketFates, "__init__", lambda self, host, query: None)
    monkeypatch.setattr(ipsec.PacketFates, "fate", lambda self, destination, source: whole)
    unprotected = diagnoser._unprotected("office")
    if not unprotected:
        assert cause == ""
        return
    diagnosis = ipsec.unprotected_diagnosis("office", *unprotected, since=7.0, tried="up")
    assert diagnosis.cause == cause and words in diagnosis.means and diagnosis.when == 7.0


def test_up_waits_as_long_as_something_may_come() -> None:
    wait = UpWait(None)
    assert wait.take(b'181 "office" #1: sent IKE_SA_INIT request\n') is None and not wait.established
    assert wait.take(b'"office" #2: IKE_AUTH response missing v2SA, v2TSi or v2TSr: not attempting to setup CHILD SA\n'
                     ) == ipsec.LET_GO_TIME
    assert wait.cause is CAUSE_BY_NAME["kernel-peer"]
    wait.take(b'004 "office" #3: initiator established Chi')
    assert not wait.established
    assert wait.take(b"ld SA using #1\n") is None and wait.established and wait.cause is None
    left = UpWait(5.0).take(b"")
    assert left is not None and 4 < left <= 5


def test_ctrl_c_while_up_looks_for_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pluto tries again after whack's end, so the connection is taken down also then."""
    taken_down: list[str] = []

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt("SIGINT")

    runner = ipsec.WhackRunner(Host(dict(os.environ)), ipsec.Args())
    monkeypatch.setattr(runner, "_negotiate", lambda *_: 1)
    monkeypatch.setattr(runner, "_explain_failure", interrupt)
    monkeypatch.setattr(runner, "_take_down", taken_down.append)
    with pytest.raises(KeyboardInterrupt):
        runner.bring_up("office", ["--name", "office", "--initiate"])
    assert taken_down == ["office"]


def test_relay_copies_output_and_gives_up(capfd: pytest.CaptureFixture[str]) -> None:
    host = Host(dict(os.environ))
    assert host.relay(["sh", "-c", "echo hello; exit 7"], lambda data: None) == 7
    assert host.relay(["sh", "-c", "echo there; exec sleep 3600"], lambda data: 0.0 if data else None) is None
    assert capfd.readouterr().out == "hello\nthere\n"
