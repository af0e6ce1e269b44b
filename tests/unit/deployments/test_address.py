import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.address import is_loopback, is_public

FORBIDDEN = [
    # this host
    "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.1.2.3", "127.255.255.254", "::", "::1",
    # private
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.255.255", "fc00::1", "fd00::1", "fd00:ec2::254", "fd20:ce::254", "fec0::1",
    # link-local and metadata
    "169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "fe80::a9fe:a9fe",
    "100.64.0.1", "100.100.100.200", "100.127.255.255", "168.63.129.16", "192.0.0.192",
    # special
    "192.0.0.8", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1",
    "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1",
    "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "2620:4f:8000::1", "5f00::1",
    # an IPv4 address inside
    "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:100.64.0.1", "::ffff:0:127.0.0.1", "::7f00:1", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8", "2002:7f00:1::",
    "2002:a00:1::1", "2002:808:808::1", "2001:0:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    # no address
    "", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4 ", "1.2.3", "::g",
    "8.8.8.8/32", "fe80::1%lo",
]  # fmt: skip

ALLOWED = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.0", "169.253.255.255", "172.15.255.255", "172.32.0.0",
    "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
    "223.255.255.255", "2001:200::1", "2001:4860:4860::8888", "2606:4700:4700::1111",
    "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_the_internets_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


def test_there_are_at_least_sixty_forbidden_spellings():
    assert len(set(FORBIDDEN)) >= 60


@given(st.ip_addresses(v=4))
def test_whatever_is_public_is_global_to_the_standard_library_too(address):
    # The reverse does not hold: that is why the rule is our own.
    assert not is_public(str(address)) or address.is_global


@given(st.ip_addresses(v=4))
def test_a_mapped_or_translated_address_is_judged_as_the_one_inside(address):
    expected = is_public(str(address))
    assert is_public(f"::ffff:{address}") == expected
    assert is_public(f"64:ff9b::{address}") == expected
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))


@pytest.mark.parametrize("host", ["localhost", "app.localhost", "127.0.0.1", "127.8.0.1", "::1"])
def test_a_loopback_host_means_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "localhost.example.com", ""])
def test_any_other_host_can_be_reached_from_outside(host: str) -> None:
    assert not is_loopback(host)
