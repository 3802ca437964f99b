use super::*;

fn mask(text: &str) -> CoreMask {
    text.parse().unwrap()
}

#[test]
fn cores_of_the_documents_example_are_dealt_as_it_says() {
    let deal = deal("phys2", &mask("0xfc02"), 2..4).unwrap();
    assert_eq!(deal.master, 1);
    let named: Vec<_> = deal.components.iter().map(|(core, role)| (*core, role.name())).collect();
    let expected = [
        (10, "forward_2_tx"),
        (11, "forward_2_rx"),
        (12, "forward_3_tx"),
        (13, "forward_3_rx"),
        (14, "classifier"),
        (15, "merger"),
    ];
    assert_eq!(named, expected.map(|(core, name)| (core, name.to_owned())));
    assert!(deal.unused.is_empty() && deal.warning("x").is_none());
}

#[test]
fn masks_wider_than_128_bits_keep_every_core() {
    let wide = mask("0x80000000000000000000000000000000000000000000000000000000000000f1");
    assert_eq!(wide.cores().collect::<Vec<_>>(), [0, 4, 5, 6, 7, 255]);
    assert_eq!(wide.to_string(), "0x80000000000000000000000000000000000000000000000000000000000000f1");
    assert_eq!(mask("0x0000FE").to_string(), "0xfe");
}

#[test]
fn mask_without_its_zero_is_refused_with_the_likely_meaning() {
    let error = "xfc02".parse::<CoreMask>().unwrap_err().to_string();
    assert_eq!(error, r#""xfc02" is not a core mask: did you mean "0xfc02"?"#);
    assert!("fe".parse::<CoreMask>().unwrap_err().to_string().contains(r#""0xfe""#));
}

#[test]
fn empty_zero_and_non_hex_masks_are_refused() {
    assert_eq!(" ".parse::<CoreMask>(), Err(MaskError::Empty));
    assert_eq!("0x000".parse::<CoreMask>(), Err(MaskError::NoCore("0x000".into())));
    for text in ["0x", "0xfg", "0x_f", "0x-1", "-1", "hello", "0xf,0xe"] {
        assert_eq!(text.parse::<CoreMask>(), Err(MaskError::NotHex(text.into())), "{text}");
    }
    let long = format!("0x{}", "f".repeat(20_000));
    assert_eq!(long.parse::<CoreMask>(), Err(MaskError::TooLong(20_000)));
}

#[test]
fn too_few_cores_are_refused_naming_needed_and_given() {
    let error = deal("NIC 1 (00:04.0)", &mask("0x7e"), 0..2).unwrap_err().to_string();
    assert!(error.contains("has 6 cores") && error.contains("need 7"), "{error}");
}

#[test]
fn too_many_cores_are_a_warning_naming_them() {
    let deal = deal("NIC 1", &mask("0xffe"), 0..2).unwrap();
    assert_eq!(deal.unused, [8, 9, 10, 11]);
    assert!(deal.warning("NIC 1").unwrap().contains("8-11"));
}

#[test]
fn overlap_is_refused_naming_both_owners_and_the_core() {
    let owners = [("a".to_owned(), mask("0xfe")), ("b".to_owned(), mask("0xfc82"))];
    let error = check_overlap(&owners).unwrap_err().to_string();
    assert!(error.contains("core 7") && error.contains("both a and b"), "{error}");
}

#[test]
fn master_core_may_be_shared_between_owners() {
    assert_eq!(check_overlap(&[("a".to_owned(), mask("0xfe")), ("b".to_owned(), mask("0xfc02"))]), Ok(()));
}

#[test]
fn master_on_anothers_polling_core_is_a_warning() {
    let owners = [("a".to_owned(), mask("0xfe")), ("b".to_owned(), mask("0x3f80"))];
    assert_eq!(check_overlap(&owners), Ok(()));
    assert_eq!(busy_masters(&owners), ["b: its master core 7 is busy polling for a"]);
}

#[test]
fn offline_cores_are_refused_naming_them() {
    let online = CoreMask::from_list("0-3,6\n").unwrap();
    let error = check_online("a", &mask("0xfe"), &online).unwrap_err().to_string();
    assert!(error.contains("core 4-5,7") && error.contains("0-3,6"), "{error}");
    assert_eq!(check_online("a", &mask("0x4e"), &online), Ok(()));
}

#[test]
fn report_counts_vhosts_over_all_masks() {
    let report = report(&[(mask("0xfe"), None), (mask("0xfc02"), Some(2))], None).unwrap();
    assert_eq!(report.vfs[0].n_vhost, 2);
    assert_eq!(report.vfs[1].components[0].name, "forward_2_tx");
    assert!(report.warnings.is_empty());
}

#[test]
fn this_machine_has_cores_online() {
    assert!(!online().unwrap().is_empty());
}
