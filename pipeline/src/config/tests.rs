use super::*;

const DOCUMENTS: &str = r#"[{"num_vhost": 2, "pci_address": "00:04.0", "physical_network": "phys1", "core_mask": "0xfe"}, {"num_vhost": 2, "pci_address": "00:05.0", "physical_network": "phys2", "core_mask": "0xfc02"}]"#;

fn error(json: &str) -> String {
    let text = NodeConfig::parse(json.as_bytes()).expect_err(json).to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

/// The documents' first NIC with one field replaced.
fn nic_with(field: &str, value: &str) -> String {
    let mut nic = serde_json::json!({"num_vhost": 2, "pci_address": "00:04.0", "physical_network": "p", "core_mask": "0xfe"});
    nic[field] = serde_json::from_str(value).unwrap();
    format!("[{nic}]")
}

#[test]
fn documents_list_is_read_and_written_byte_for_byte() {
    let config = NodeConfig::parse(DOCUMENTS.as_bytes()).unwrap();
    assert_eq!(config.form, Form::List);
    assert_eq!(config.to_json(Form::List).unwrap(), DOCUMENTS);
    let layout = [("phys1", 0), ("phys1", 1), ("phys2", 2), ("phys2", 3)];
    assert_eq!(config.layout(), layout.map(|(network, id)| (network.to_owned(), id)));
}

#[test]
fn dict_form_spells_out_the_default_components_as_devstack_does() {
    let config = NodeConfig::from_mappings("00:04.0#phys1#1#0x3e").unwrap();
    let expected = concat!(
        r#"{"vf": [{"physical_network": "phys1", "pci_address": "00:04.0", "num_vhost": 1, "core_mask": "0x3e", "components": ["#,
        r#"{"core": 2, "type": "forward", "name": "forward_0_tx", "rx_port": ["ring:0"], "tx_port": ["vhost:0"]}, "#,
        r#"{"core": 3, "type": "forward", "name": "forward_0_rx", "rx_port": ["vhost:0"], "tx_port": ["ring:1"]}, "#,
        r#"{"core": 4, "type": "classifier", "name": "classifier", "rx_port": ["phy:0"], "tx_port": ["ring:0"]}, "#,
        r#"{"core": 5, "type": "merge", "name": "merger", "rx_port": ["ring:1"], "tx_port": ["phy:0"]}]}]}"#,
    );
    assert_eq!(config.to_json(Form::Dict).unwrap(), expected);
}

#[test]
fn dict_form_reads_back_as_the_same_node() {
    let list = NodeConfig::parse(DOCUMENTS.as_bytes()).unwrap();
    let dict = NodeConfig::parse(list.to_json(Form::Dict).unwrap().as_bytes()).unwrap();
    assert_eq!(dict.form, Form::Dict);
    for i in 0..2 {
        assert_eq!(dict.components(i), list.components(i));
        assert_eq!(dict.vfs[i].components, Some(list.components(i).unwrap()));
    }
    assert!(dict.to_json(Form::List).is_err(), "components would be lost");
}

#[test]
fn old_spelling_of_the_classifier_and_unknown_fields_are_accepted() {
    let json = r#"{"vf": [{"num_vhost": 1, "pci_address": "null:", "physical_network": "p", "core_mask": "0x3", "note": 1,
        "components": [{"core": 1, "type": "classifier_mac", "name": "c", "rx_port": ["phy:0"], "tx_port": ["vhost:0"], "x": {}}]}],
        "mirror": [{"core": 16, "ports": ["ring:2", "ring:3"]}], "other": []}"#;
    let config = NodeConfig::parse(json.as_bytes()).unwrap();
    assert_eq!(config.vfs[0].components.as_ref().unwrap()[0].kind, ComponentKind::Classifier);
    assert_eq!((config.mirrors.len(), config.n_rings()), (1, 4));
}

#[test]
fn mappings_equal_the_list() {
    let config = NodeConfig::from_mappings("00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02").unwrap();
    assert_eq!(config.to_json(Form::List).unwrap(), DOCUMENTS);
}

#[test]
fn devices_with_commas_fit_into_mappings() {
    let config =
        NodeConfig::from_mappings("gen:len=64,dst=02:00:00:00:00:01#a#1#0x3e, pcap:rx=a,tx=b#b#1#0x7c1")
            .unwrap();
    assert_eq!(config.vfs[0].address.text(), "gen:len=64,dst=02:00:00:00:00:01");
    assert_eq!(config.vfs[1].address.text(), "pcap:rx=a,tx=b");
}

#[test]
fn mapping_with_a_mask_that_misses_its_zero_gets_the_hint() {
    let error =
        NodeConfig::from_mappings("00:04.0#phys1#2#0xfe,00:05.0#phys2#2#xfc02").unwrap_err().to_string();
    assert!(
        error.contains("NIC 2 (00:05.0): core_mask") && error.contains(r#"did you mean "0xfc02""#),
        "{error}"
    );
}

#[test]
fn malformed_mappings_are_refused() {
    for text in [
        "",
        "a",
        "a#b#c",
        "00:04.0#p#2#0xfe,",
        "00:04.0#p#-1#0xfe",
        "00:04.0#p#0#0xfe",
        "00:04.0##1#0xfe",
        "04.0#p#1#0xfe",
    ] {
        assert!(NodeConfig::from_mappings(text).is_err(), "{text}");
    }
}

#[test]
fn pci_addresses_are_taken_short_and_full_and_shown_full() {
    for (text, full) in
        [("00:04.0", "0000:00:04.0"), ("0000:5E:00.1", "0000:5e:00.1"), ("10000:01:1f.7", "10000:01:1f.7")]
    {
        let address = DeviceAddr::parse(text).unwrap();
        assert_eq!((address.to_string().as_str(), address.text()), (full, text));
    }
    for text in ["", "4.0", "00:04", "00:04.8", "00:20.0", "00:04.0.0", "0x00:04.0", "eth0", "vhost-user:"] {
        assert!(DeviceAddr::parse(text).is_err(), "{text}");
    }
}

#[test]
fn errors_name_the_nic_the_field_and_what_is_allowed() {
    for (field, value, expected) in [
        ("num_vhost", "\"2\"", "NIC 1 (00:04.0): num_vhost: \"2\" is not a whole number from 1 to 1024"),
        ("num_vhost", "0", "whole number from 1"),
        ("num_vhost", "2.5", "2.5 is not"),
        ("num_vhost", "-1", "-1 is not"),
        ("num_vhost", "99999999999999999999", "is not a whole number"),
        ("core_mask", "254", "core_mask: 254 is not a text"),
        ("core_mask", "\"xfe\"", "did you mean \"0xfe\"?"),
        ("core_mask", "\"0x3e\"", "has 5 cores but 2 vhosts need 7"),
        ("pci_address", "\"eth0\"", "NIC 1 (eth0): pci_address: \"eth0\" is not a device"),
        ("pci_address", r#""a\nb""#, "NIC 1 (a\\nb): pci_address"),
        ("pci_address", r#""tap:a\nb""#, "control characters"),
        ("physical_network", r#""a\nb""#, "physical_network"),
        ("pci_address", "4", "NIC 1: pci_address: 4 is not a text"),
        ("physical_network", "\"a/b\"", "physical_network: \"a/b\""),
        ("physical_network", "null", "physical_network: null is not a text"),
        ("components", "{}", "components: a dict is not a list"),
        ("components", "[5]", "components[0] is not a dict"),
        (
            "components",
            r#"[{"core":2,"type":"nat","name":"x","rx_port":[],"tx_port":[]}]"#,
            "components[0].type: \"nat\"",
        ),
        (
            "components",
            r#"[{"core":2,"type":"merge","name":"x","rx_port":["tap:0"],"tx_port":[]}]"#,
            "components[0].rx_port",
        ),
        ("components", r#"[{"core":2,"type":"merge","name":"","rx_port":[],"tx_port":[]}]"#, "1 to 31"),
        ("components", r#"[{"core":1,"type":"merge","name":"m","rx_port":[],"tx_port":[]}]"#, "master core"),
        (
            "components",
            r#"[{"core":8,"type":"merge","name":"m","rx_port":[],"tx_port":[]}]"#,
            "core 8 is not one of vf 1: it has 2-7",
        ),
        ("components", r#"[{"core":2}]"#, "components[0].type: missing"),
    ] {
        let text = error(&nic_with(field, value));
        assert!(text.contains(expected), "{field}={value}: {text}");
    }
}

#[test]
fn other_shapes_are_refused() {
    for json in ["", "5", "[]", "{}", "{\"vf\": 5}", "{\"vf\": []}", "[5]", "nonsense", "[{\"num_vhost\": 1]"]
    {
        error(json);
    }
    assert!(NodeConfig::parse(&[0xff, 0xfe]).is_err());
    let deep = "[".repeat(100_000);
    assert!(NodeConfig::parse(deep.as_bytes()).is_err());
}

#[test]
fn overlapping_masks_are_refused_naming_both_nics() {
    let text = NodeConfig::from_mappings("00:04.0#a#2#0xfe,00:05.0#b#2#0xfc82").unwrap_err().to_string();
    assert!(
        text.contains("core 7") && text.contains("NIC 1 (00:04.0)") && text.contains("NIC 2 (00:05.0)"),
        "{text}"
    );
}

#[test]
fn one_nic_given_twice_is_refused() {
    let text = NodeConfig::from_mappings("00:04.0#a#1#0x3e,0000:00:04.0#b#1#0x7c1").unwrap_err().to_string();
    assert!(text.contains("is already NIC 1 (00:04.0)"), "{text}");
    assert!(NodeConfig::from_mappings("null:#a#1#0x3e,null:#b#1#0x7c1").is_ok());
}

#[test]
fn spare_cores_are_a_warning() {
    let config = NodeConfig::from_mappings("00:04.0#a#1#0xfe").unwrap();
    assert_eq!(config.warnings().len(), 1);
    assert!(config.warnings()[0].contains("6-7 stay idle"), "{:?}", config.warnings());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_read_or_refused_in_one_line(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        if let Err(error) = NodeConfig::parse(&bytes) {
            proptest::prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn any_text_is_a_mapping_or_refused_in_one_line(text in "[ -~]{0,40}#[ -~]{0,10}#[0-9x]{0,5}#[0-9a-fx]{0,40}(,[ -~]{0,20})?") {
        match NodeConfig::from_mappings(&text) {
            // What is accepted can be written and read again.
            Ok(config) => {
                let json = config.to_json(Form::Dict).unwrap();
                proptest::prop_assert_eq!(NodeConfig::parse(json.as_bytes()).unwrap().layout(), config.layout());
            }
            Err(error) => proptest::prop_assert!(!error.to_string().contains('\n')),
        }
    }

    #[test]
    fn masks_round_trip(cores in proptest::collection::btree_set(0usize..600, 1..40)) {
        let mask: CoreMask = cores.iter().copied().collect();
        proptest::prop_assert_eq!(&mask.to_string().parse::<CoreMask>().unwrap(), &mask);
        proptest::prop_assert_eq!(CoreMask::from_list(&mask.to_list()).unwrap(), mask.clone());
        proptest::prop_assert!(mask.cores().eq(cores));
    }
}
