//! Instructions per packet of every stage, counted by callgrind, against the committed table.
//!
//! Counts do not depend on what else the machine does. They depend on the compiler, which the table names, and
//! hardly on the processor: the C library's copying functions, the only code that is chosen at run
//! time, are held at their plainest by `GLIBC_TUNABLES`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// More than this is a failure.
const GROWTH_MAX: f64 = 1.05;
const UPDATE: &str = "SPP_UPDATE_INSTRUCTIONS";
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";

/// Instructions per packet at bursts of 1, 4, 8, 32, by row.
type Table = BTreeMap<String, [f64; 4]>;

fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../instructions.txt")
}

fn stages() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = ["build", "--release", "-p", "spp-stages", "--quiet"];
    let built = Command::new(env!("CARGO")).args(build).current_dir(root).status().expect("cargo runs");
    assert!(built.success(), "the release build of spp-stages failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let binary = root.join("../..").join(target).join("x86_64-unknown-linux-gnu/release/spp-stages");
    assert!(binary.is_file(), "no binary at {}", binary.display());
    binary
}

/// Runs all rows once. callgrind writes one file for each row and burst, in the order in which the program
/// names them.
fn count(dir: &Path) -> Table {
    let out = dir.join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*stage::counted_turn*"])
        .args(["--dump-before=*stage::row_is_over*", &format!("--callgrind-out-file={}", out.display())])
        .arg(stages())
        .arg("--count")
        .env("GLIBC_TUNABLES", PLAIN_COPIES)
        .output()
        .expect("valgrind was there a moment ago");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{log}");
    let mut table = Table::new();
    for (n, line) in said.lines().enumerate() {
        let [name, _, packets] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let dump = std::fs::read_to_string(dir.join(format!("out.{}", n + 1))).expect("a dump for each line");
        let totals = dump.lines().find_map(|line| line.strip_prefix("totals: ")).expect("callgrind sums up");
        let per_packet = totals.trim().parse::<f64>().unwrap() / packets.parse::<f64>().unwrap();
        assert!(per_packet > 0.0, "{name}: nothing was counted; has counted_turn another name?");
        table.entry(name.to_owned()).or_default()[n % 4] = per_packet;
    }
    table
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc is there where cargo is");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn print(table: &Table) -> String {
    let mut text = format!(
        "# Instructions per packet of each stage at bursts of 1, 4, 8 and 32, counted by callgrind.\n\
         # More than 5 % growth fails `cargo test -p spp-stages`. A commit that means it says why, and brings what\n\
         #     {UPDATE}=1 cargo test -p spp-stages\n\
         # writes here. Made with {}.\n\
         # {:42} {:>8} {:>8} {:>8} {:>8}\n",
        compiler(),
        "stage",
        1,
        4,
        8,
        32
    );
    for (name, [a, b, c, d]) in table {
        let name = format!("{name}:");
        writeln!(text, "{name:44} {a:8.1} {b:8.1} {c:8.1} {d:8.1}").expect("a String takes all");
    }
    text
}

fn parse(text: &str) -> Table {
    let row = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<f64> = counts.split_whitespace().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        Some((name.to_owned(), counts.try_into().ok()?))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| row(line).unwrap_or_else(|| panic!("instructions.txt: {line:?} is no row"))).collect()
}

/// What is wrong, in words, one line each.
fn compare(old: &Table, new: &Table) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, counts) in new {
        let Some(before) = old.get(name) else {
            complaints.push(format!("{name}: not in the table"));
            continue;
        };
        for (burst, (now, before)) in [1, 4, 8, 32].iter().zip(counts.iter().zip(before)) {
            if *now > before * GROWTH_MAX {
                let percent = (now / before - 1.0) * 100.0;
                complaints.push(format!(
                    "{name}, burst {burst}: {before:.1} -> {now:.1} instructions per packet (+{percent:.0} %)"
                ));
            }
        }
    }
    complaints.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("{name}: gone")));
    complaints
}

#[test]
fn stages_take_no_more_instructions_than_the_committed_table_says() {
    let test = "stages_take_no_more_instructions_than_the_committed_table_says";
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: {test}: valgrind is not installed (Debian package valgrind)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let new = count(dir.path());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(table_path(), print(&new)).unwrap();
        return;
    }
    let text = std::fs::read_to_string(table_path()).expect("benches/instructions.txt is in the repository");
    let complaints = compare(&parse(&text), &new);
    let made_with = text.lines().find_map(|line| line.split("Made with ").nth(1)).unwrap_or_default();
    assert!(
        complaints.is_empty(),
        "instructions grew:\n  {}\nThe table was made with {made_with} this is {}. If the growth is meant: \
         {UPDATE}=1 cargo test -p spp-stages, and say why in the commit.",
        complaints.join("\n  "),
        compiler()
    );
    println!("{}", print(&new));
}

#[test]
fn growth_beyond_five_percent_is_named_and_less_is_not() {
    let old = Table::from([("a".to_owned(), [100.0, 50.0, 40.0, 30.0]), ("b".to_owned(), [1.0; 4])]);
    let mut new = old.clone();
    assert!(compare(&old, &new).is_empty());
    new.insert("a".to_owned(), [104.0, 53.0, 40.0, 3.0]);
    assert_eq!(compare(&old, &new), ["a, burst 4: 50.0 -> 53.0 instructions per packet (+6 %)"]);
    new.remove("b");
    new.insert("c".to_owned(), [1.0; 4]);
    assert_eq!(compare(&old, &new)[1..], ["c: not in the table", "b: gone"]);
    assert_eq!(parse(&print(&old)), old);
}
