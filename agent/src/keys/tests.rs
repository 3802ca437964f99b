//! Spelling and reading keys and values, and refusing everything else.

use spp_drivers::MacAddr;

use super::*;
use crate::Plug;

fn keys(host: &str) -> HostKeys {
    HostKeys::new(Name::new(host).unwrap())
}

const PORT: &str = "6160c9da-b2d5-4236-8413-7d646e5c0ae2";

#[test]
fn keys_are_spelled_as_the_document_has_them() {
    let keys = keys("spp4");
    let port = Name::new(PORT).unwrap();
    let slot = SlotId { physnet: Name::new("phys1").unwrap(), vhost: 0 };
    for (key, text) in [
        (Key::Configuration, "/spp/openstack/configuration/spp4".to_string()),
        (Key::Vhost(slot), "/spp/openstack/vhost/spp4/phys1/0".into()),
        (Key::BindPort(port.clone()), format!("/spp/openstack/bind_port/spp4/{PORT}")),
        (Key::PortStatus(port.clone()), format!("/spp/openstack/port_status/spp4/{PORT}")),
        (Key::Action(port.clone()), format!("/spp/openstack/action/spp4/{PORT}")),
        (Key::Mirror(1), "/spp/openstack/mirror/spp4/1".into()),
        (Key::TapInfo(port.clone()), format!("/spp/openstack/tap_info/spp4/{PORT}")),
        (Key::TapAction(port.clone()), format!("/spp/openstack/tap_action/spp4/{PORT}")),
        (Key::TapStatus(port), format!("/spp/openstack/tap_status/spp4/{PORT}")),
    ] {
        assert_eq!(keys.spell(&key), text);
        assert_eq!(keys.parse(text.as_bytes()), Some(key));
    }
}

#[test]
fn a_host_that_is_a_prefix_of_another_reads_none_of_its_keys() {
    let (short, long) = (keys("spp4"), keys("spp40"));
    for family in Family::ALL {
        let theirs = match family {
            Family::Configuration => long.prefix(family),
            Family::Vhost => format!("{}phys1/0", long.prefix(family)),
            Family::Mirror => format!("{}0", long.prefix(family)),
            _ => format!("{}{PORT}", long.prefix(family)),
        };
        assert!(long.parse(theirs.as_bytes()).is_some(), "{theirs}");
        assert_eq!(short.parse(theirs.as_bytes()), None, "{theirs}");
        if family != Family::Configuration {
            assert!(!theirs.starts_with(&short.prefix(family)), "{theirs}");
        }
    }
}

#[test]
fn odd_names_are_refused() {
    for text in ["", "a/b", "..\n", "a b", "a\0", "pört", "a\\b", &"x".repeat(256)] {
        assert!(Name::new(text).is_err(), "{text:?}");
    }
    assert!(Name::new("compute-1.example_net").is_ok());
    let keys = keys("spp4");
    for key in [
        &b"/spp/openstack/action/spp4/"[..],
        b"/spp/openstack/action/spp4/a/b",
        b"/spp/openstack/action/spp4/\xff\xfe",
        b"/spp/openstack/vhost/spp4/phys1/007",
        b"/spp/openstack/vhost/spp4/phys1/-1",
        b"/spp/openstack/vhost/spp4/phys1/1/2",
        b"/spp/openstack/vhost/spp4/phys1",
        b"/spp/openstack/vhost/spp4/phys1/99999999999",
        b"/spp/openstack/configuration/spp4/x",
        b"/spp/openstack/mirror/spp4/00",
        b"/spp/openstack/mirror/spp4/x",
        b"/spp/openstack/tap_info/spp4/a/b",
        b"/spp/openstack/taps/spp4/a",
        b"",
    ] {
        assert_eq!(keys.parse(key), None, "{}", String::from_utf8_lossy(key));
    }
}

#[test]
fn slot_values_are_told_apart() {
    assert_eq!(SlotValue::parse(b"None"), SlotValue::Free);
    assert_eq!(SlotValue::parse(PORT.as_bytes()), SlotValue::Held(Name::new(PORT).unwrap()));
    assert_eq!(SlotValue::parse(b"none"), SlotValue::Held(Name::new("none").unwrap()));
    for garbage in [&b""[..], b"\xff", b"a/b", b"None\n"] {
        assert_eq!(SlotValue::parse(garbage), SlotValue::Garbled);
    }
}

#[test]
fn bind_port_of_the_document_is_understood() {
    let got = BindPort::parse(br#"{"vhost_id": 0, "mac_address": "fa:16:3e:a0:da:db"}"#).unwrap();
    let mac = "fa:16:3e:a0:da:db".parse().unwrap();
    assert_eq!(got, BindPort { plug: Plug { vhost: 0, mac, vlan: None }, lenient: false });
}

#[test]
fn bind_port_with_extra_fields_and_capital_mac_is_understood() {
    let got = BindPort::parse(
        br#"{"vlan_id": 100, "later": {"x": [1]}, "vhost_id": 3, "mac_address": "FA:16:3E:A0:DA:DB"}"#,
    )
    .unwrap();
    assert_eq!((got.plug.vhost, got.plug.vlan, got.lenient), (3, Some(100), false));
    assert_eq!(got.plug.mac.to_string(), "fa:16:3e:a0:da:db");
}

#[test]
fn numbers_as_text_are_accepted_and_flagged() {
    let got =
        BindPort::parse(br#"{"vhost_id": "2", "mac_address": "fa:16:3e:a0:da:db", "vlan_id": "7"}"#).unwrap();
    assert_eq!((got.plug.vhost, got.plug.vlan, got.lenient), (2, Some(7), true));
}

#[test]
fn garbage_bind_port_values_are_refused() {
    let mac = r#""mac_address": "fa:16:3e:a0:da:db""#;
    let mut bad = vec![
        "".into(),
        "null".into(),
        "[]".into(),
        "{".into(),
        "up".into(),
        "{}".into(),
        r#"{"vhost_id": 0}"#.into(),
        format!("{{{mac}}}"),
        r#"{"vhost_id": 0, "mac_address": 5}"#.into(),
        r#"{"vhost_id": 0, "mac_address": "fa:16:3e:a0:da"}"#.into(),
        r#"{"vhost_id": 0, "mac_address": "01:00:5e:00:00:01"}"#.into(),
        r#"{"vhost_id": 0, "mac_address": "00:00:00:00:00:00"}"#.into(),
        format!("{}1{}", "[".repeat(1000), "]".repeat(1000)),
    ];
    for vhost in ["-1", "1.5", "true", "\"\"", "\"x\"", "\"-1\"", "4294967296", "[0]", "null"] {
        bad.push(format!("{{\"vhost_id\": {vhost}, {mac}}}"));
    }
    for vlan in ["0", "4095", "-1", "\"\"", "1e3", "{}"] {
        bad.push(format!("{{\"vhost_id\": 0, {mac}, \"vlan_id\": {vlan}}}"));
    }
    for text in bad {
        assert!(BindPort::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(BindPort::parse(&[b' '; 5000]), Err(InfoError::TooLong(5000)));
    assert!(BindPort::parse(b"\xff\xfe").is_err());
}

const TAP: &str = r#"{"service_port": "d", "source_port": "s", "mirror_in": 0, "mirror_out": null}"#;

#[test]
fn tap_info_of_each_direction_is_understood() {
    let tap = TapInfo::parse(TAP.as_bytes()).unwrap();
    let want = |mirror_in, mirror_out| TapInfo {
        source_port: Name::new("s").unwrap(),
        service_port: Name::new("d").unwrap(),
        mirror_in,
        mirror_out,
        lenient: false,
    };
    assert_eq!(tap, want(Some(0), None));
    let both = TAP.replace("null", "1");
    assert_eq!(TapInfo::parse(both.as_bytes()), Ok(want(Some(0), Some(1))));
    let out = TAP.replace("null", "3").replace('0', "null");
    assert_eq!(TapInfo::parse(out.as_bytes()), Ok(want(None, Some(3))));
    assert!(TapInfo::parse(TAP.replace('0', "\"0\"").as_bytes()).unwrap().lenient);
}

#[test]
fn garbage_tap_info_values_are_refused() {
    for (text, with) in [
        (": 0", ": null"),
        (": 0", ": -1"),
        (": 0", ": []"),
        ("null", "0"),
        ("\"s\"", "\"d\""),
        ("\"s\"", "\"a/b\""),
        ("\"s\"", "7"),
        ("\"s\"", "null"),
        ("service_port", "service"),
        ("{", "["),
    ] {
        let garbage = TAP.replacen(text, with, 1);
        assert_ne!(garbage, TAP);
        assert!(TapInfo::parse(garbage.as_bytes()).is_err(), "{garbage}");
    }
}

proptest::proptest! {
    /// What is read as a key is spelled the same again: no two texts are one key.
    #[test]
    fn reading_a_key_and_spelling_it_gives_the_same_text(
        family in 0usize..9, host in "spp4|spp40|spp", rest in "[a-z0-9/._ \\n\u{e4}-]{0,12}(/[0-9]{1,3})?",
    ) {
        let keys = keys("spp4");
        let text = format!("/spp/openstack/{}/{host}/{rest}", Family::ALL[family].word());
        if let Some(key) = keys.parse(text.as_bytes()) {
            assert_eq!(keys.spell(&key), text);
            assert_eq!(host, "spp4");
        }
    }

    #[test]
    fn arbitrary_values_are_read_or_refused(value in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = BindPort::parse(&value);
        let _ = TapInfo::parse(&value);
        SlotValue::parse(&value);
        Request::parse(&value);
        assert_eq!(keys("spp4").parse(&value), None);
    }

    #[test]
    fn bind_port_is_read_back_as_written(vhost: u32, mac: [u8; 6], vlan in proptest::option::of(1u16..4095)) {
        let mut mac = MacAddr(mac);
        mac.0[0] = mac.0[0] & !1 | 2;
        let plug = Plug { vhost, mac, vlan };
        let read = BindPort::parse(BindPort::write(&plug).as_bytes());
        assert_eq!(read, Ok(BindPort { plug, lenient: false }));
    }
}

#[test]
fn keys_live_below_the_operators_prefix() {
    let keys = HostKeys::under("/cloud-7/spp/".parse().unwrap(), Name::new("h").unwrap());
    assert_eq!(keys.spell(&Key::Configuration), "/cloud-7/spp/openstack/configuration/h");
    assert_eq!(keys.parse(b"/cloud-7/spp/openstack/configuration/h"), Some(Key::Configuration));
    assert_eq!(keys.parse(b"/spp/openstack/configuration/h"), None);
    assert_eq!("/spp".parse(), Ok(Root::default()));
    for bad in ["", "/", "spp", "//", "/a//b", "/a b", "/a\n"] {
        assert!(bad.parse::<Root>().is_err(), "{bad:?}");
    }
}
