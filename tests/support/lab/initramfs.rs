//! The guests' root: busybox, kernel modules and an init that runs the test's scripts. Built in memory, no disk image.
//!
//! The format is the kernel's `newc` cpio archive (linux: Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The first process of a guest, unless a test brings its own.
pub const INIT: &str = include_str!("init.sh");

/// An archive that grows file by file.
pub struct Archive {
    bytes: Vec<u8>,
    n_entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
/// Mode of a file everybody may run.
pub const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive { bytes: Vec::new(), n_entries: 0 }
    }

    /// Appends one entry: header of 110 characters, name with its zero, data; both padded to four bytes.
    pub fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.n_entries += 1;
        let (inode, n_links) = (self.n_entries, 1);
        let (data_len, name_len) = (data.len() as u32, name.len() as u32 + 1);
        let fields = [inode, mode, 0, 0, n_links, 0, data_len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Closes the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Builds the archive: `init`, `modules` and what they depend on, plus `files` as (path inside, path here), all executable.
pub fn build(
    init: &str,
    busybox: &Path,
    modules_dir: &Path,
    modules: &[&str],
    files: &[(String, PathBuf)],
) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "host", "modules", "proc", "run", "share", "sys", "tmp"] {
        archive.entry(directory, DIRECTORY, &[]);
    }
    archive.entry("init", EXECUTABLE, init.as_bytes());
    archive.entry("bin/busybox", EXECUTABLE, &fs::read(busybox)?);
    archive.entry("bin/sh", SYMLINK, b"busybox");
    let dep = fs::read_to_string(modules_dir.join("modules.dep"))?;
    let order = load_order(&dep, modules).map_err(io::Error::other)?;
    let mut names = String::new();
    for path in order {
        let name = stem(path);
        archive.entry(&format!("modules/{name}.ko"), EXECUTABLE, &fs::read(modules_dir.join(path))?);
        names += name;
        names.push('\n');
    }
    archive.entry("modules/order", EXECUTABLE, names.as_bytes());
    let mut made: HashSet<&Path> = ["", "bin"].map(Path::new).into();
    for (inside, here) in files {
        let above: Vec<&Path> = Path::new(inside).ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|folder| made.insert(*folder)) {
            archive.entry(&folder.to_string_lossy(), DIRECTORY, &[]);
        }
        archive.entry(inside, EXECUTABLE, &fs::read(here)?);
    }
    Ok(archive.finish())
}

fn stem(path: &str) -> &str {
    let file = path.rsplit('/').next().expect("split gives at least one piece");
    file.strip_suffix(".ko").unwrap_or(file)
}

/// The files to insert, in order, so that each finds what it depends on: `modules.dep` lists under each module all it
/// needs, the deepest last. `-` and `_` mean the same in module names. A name that is in no file is built in.
pub fn load_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Result<Vec<&'a str>, String> {
    let same = |path: &str, name: &str| stem(path).replace('-', "_") == name.replace('-', "_");
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    for name in wanted {
        let (module, needs) = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| same(path, name))
            .ok_or_else(|| format!("modules.dep has no {name}"))?;
        let deepest_first = needs.split_whitespace().rev();
        order.extend(deepest_first.chain([module]).filter(|&path| seen.insert(path)));
    }
    Ok(order)
}
