//! CPU cores: masks of any width, and how the cores of a mask are dealt out to components.
//!
//! Pure but for [`online`]. The rule is the architecture document's: the lowest core is the master,
//! the rest in ascending order go to each vhost's tx forwarder and rx forwarder, then to the
//! classifier, then to the merger.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::{ComponentKind, clip};

/// A set of CPU cores of any width, written `0xfc02`.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreMask {
    /// Bit c % 64 of word c / 64 is core c; the last word is never zero.
    words: Vec<u64>,
}

impl CoreMask {
    /// True when `core` is in the set.
    pub fn contains(&self, core: usize) -> bool {
        self.words.get(core / 64).is_some_and(|word| word >> (core % 64) & 1 == 1)
    }

    /// Its cores, ascending.
    pub fn cores(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.words.len() * 64).filter(|&core| self.contains(core))
    }

    /// Number of cores.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True when there is no core in it.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The lowest core.
    pub fn lowest(&self) -> Option<usize> {
        self.cores().next()
    }

    /// Parses the kernel's list form, `0-3,8`.
    pub fn from_list(text: &str) -> Option<CoreMask> {
        let mut cores = Vec::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if last >= MAX_CORES {
                return None;
            }
            cores.extend(first..=last);
        }
        Some(cores.into_iter().collect())
    }

    /// In the kernel's list form, `2-7,10`.
    pub fn to_list(&self) -> String {
        let cores: Vec<usize> = self.cores().collect();
        let runs = cores.chunk_by(|a, b| a + 1 == *b);
        let texts = runs.map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        });
        texts.collect::<Vec<_>>().join(",")
    }
}

/// Core numbers in a mask end here: far above any machine, low enough that a mask's text can't take much memory.
const MAX_CORES: usize = 1 << 16;

impl FromIterator<usize> for CoreMask {
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> CoreMask {
        let mut words = Vec::new();
        for core in cores {
            if words.len() <= core / 64 {
                words.resize(core / 64 + 1, 0);
            }
            words[core / 64] |= 1u64 << (core % 64);
        }
        CoreMask { words }
    }
}

/// What is wrong with the text of a mask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Nothing written.
    #[error("the core mask is empty: write hex digits, like 0xfe")]
    Empty,
    /// The digits are there but not the prefix.
    #[error("{text:?} is not a core mask: did you mean \"0x{digits}\"?")]
    NoPrefix {
        /// As written.
        text: String,
        /// The hex digits in it.
        digits: String,
    },
    /// Something else than hex.
    #[error("{0:?} is not a core mask: write hex digits after 0x, like 0xfe")]
    NotHex(String),
    /// Zero.
    #[error("core mask {0} holds no core")]
    NoCore(String),
    /// Absurdly long.
    #[error("the core mask has {0} digits: at most {max} are taken", max = MAX_CORES / 4)]
    TooLong(usize),
}

impl FromStr for CoreMask {
    type Err = MaskError;

    fn from_str(text: &str) -> Result<CoreMask, MaskError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(MaskError::Empty);
        }
        let all_hex = |digits: &str| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) else {
            let digits = text.trim_start_matches(['x', 'X']);
            return Err(match all_hex(digits) {
                true => MaskError::NoPrefix { text: clip(text).to_owned(), digits: clip(digits).to_owned() },
                false => MaskError::NotHex(clip(text).to_owned()),
            });
        };
        if !all_hex(digits) {
            return Err(MaskError::NotHex(clip(text).to_owned()));
        }
        if digits.len() > MAX_CORES / 4 {
            return Err(MaskError::TooLong(digits.len()));
        }
        let nibbles = digits.bytes().rev().filter_map(|c| char::from(c).to_digit(16));
        let set = nibbles.enumerate().flat_map(|(i, nibble)| {
            (0..4).filter(move |bit| nibble >> bit & 1 == 1).map(move |bit| i * 4 + bit)
        });
        let mask: CoreMask = set.collect();
        if mask.is_empty() { Err(MaskError::NoCore(clip(text).to_owned())) } else { Ok(mask) }
    }
}

impl fmt::Display for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.words.iter().rev();
        write!(f, "{:#x}", words.next().unwrap_or(&0))?;
        words.try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl fmt::Debug for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for CoreMask {
    type Error = MaskError;
    fn try_from(text: String) -> Result<CoreMask, MaskError> {
        text.parse()
    }
}

impl From<CoreMask> for String {
    fn from(mask: CoreMask) -> String {
        mask.to_string()
    }
}

/// Which component a core is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// ring:2n to vhost:n.
    ForwardTx(u32),
    /// vhost:n to ring:2n+1.
    ForwardRx(u32),
    /// The NIC to the rings towards the guests.
    Classifier,
    /// The rings from the guests to the NIC.
    Merger,
}

impl Role {
    /// The component's name: `forward_0_tx`, `forward_0_rx`, `classifier`, `merger`.
    pub fn name(self) -> String {
        match self {
            Role::ForwardTx(vhost) => format!("forward_{vhost}_tx"),
            Role::ForwardRx(vhost) => format!("forward_{vhost}_rx"),
            Role::Classifier => "classifier".to_owned(),
            Role::Merger => "merger".to_owned(),
        }
    }

    /// The component's type.
    pub const fn kind(self) -> ComponentKind {
        match self {
            Role::ForwardTx(_) | Role::ForwardRx(_) => ComponentKind::Forward,
            Role::Classifier => ComponentKind::Classifier,
            Role::Merger => ComponentKind::Merge,
        }
    }
}

/// A mask dealt out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// The lowest core: control, not polling.
    pub master: usize,
    /// One core per component, in the order of the rule.
    pub components: Vec<(usize, Role)>,
    /// Cores left over: more than the rule needs.
    pub unused: Vec<usize>,
}

impl Deal {
    /// A line for the operator when the mask has more cores than components.
    pub fn warning(&self, owner: &str) -> Option<String> {
        let unused: CoreMask = self.unused.iter().copied().collect();
        let needed = self.components.len() + 1;
        (!unused.is_empty()).then(|| {
            format!(
                "{owner}: core mask has more cores than the {needed} needed: {} stay idle",
                unused.to_list()
            )
        })
    }
}

/// Why cores can't be given out as asked. `owner` names the NIC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// Not enough cores in a mask.
    #[error(
        "{owner}: core mask {mask} has {given} cores but {n_vhost} vhosts need {needed}: a master, two per vhost, a classifier and a merger"
    )]
    TooFew {
        /// Whose mask.
        owner: String,
        /// The mask.
        mask: CoreMask,
        /// Cores in it.
        given: usize,
        /// Cores needed.
        needed: usize,
        /// For this many vhosts.
        n_vhost: u32,
    },
    /// Two owners poll on one core.
    #[error("core {cores} belongs to both {first} and {second}: only the master core may be shared")]
    Overlap {
        /// The shared cores.
        cores: String,
        /// One owner.
        first: String,
        /// The other.
        second: String,
    },
    /// Cores this machine does not have or has switched off.
    #[error("{owner}: core {cores} is not online: this machine has {online}")]
    Offline {
        /// Whose mask.
        owner: String,
        /// The missing cores.
        cores: String,
        /// The cores there are.
        online: String,
    },
}

/// Deals out the cores of a mask for vhosts with ids `vhosts`.
pub fn deal(owner: &str, mask: &CoreMask, vhosts: Range<u32>) -> Result<Deal, CoresError> {
    let n_vhost = vhosts.end - vhosts.start;
    let forwards = vhosts.flat_map(|vhost| [Role::ForwardTx(vhost), Role::ForwardRx(vhost)]);
    let roles: Vec<Role> = forwards.chain([Role::Classifier, Role::Merger]).collect();
    let too_few = || CoresError::TooFew {
        owner: owner.to_owned(),
        mask: mask.clone(),
        given: mask.len(),
        needed: roles.len() + 1,
        n_vhost,
    };
    let mut cores = mask.cores();
    let master = cores.next().ok_or_else(too_few)?;
    let workers: Vec<usize> = cores.collect();
    if workers.len() < roles.len() {
        return Err(too_few());
    }
    let (used, unused) = workers.split_at(roles.len());
    let components = used.iter().copied().zip(roles).collect();
    Ok(Deal { master, components, unused: unused.to_vec() })
}

/// The cores of a mask that may poll: all but the master.
pub fn workers(mask: &CoreMask) -> CoreMask {
    mask.cores().skip(1).collect()
}

/// Refuses two owners that share a polling core.
pub fn check_overlap(masks: &[(String, CoreMask)]) -> Result<(), CoresError> {
    for (i, (first, a)) in masks.iter().enumerate() {
        let a = workers(a);
        for (second, b) in &masks[i + 1..] {
            let shared: CoreMask = workers(b).cores().filter(|&core| a.contains(core)).collect();
            if !shared.is_empty() {
                let (first, second) = (first.clone(), second.clone());
                return Err(CoresError::Overlap { cores: shared.to_list(), first, second });
            }
        }
    }
    Ok(())
}

/// A line for the operator for each master core that another owner polls on.
pub fn busy_masters(masks: &[(String, CoreMask)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (owner, mask) in masks {
        let Some(master) = mask.lowest() else { continue };
        for (other, theirs) in masks.iter().filter(|(other, _)| other != owner) {
            if workers(theirs).contains(master) {
                warnings.push(format!("{owner}: its master core {master} is busy polling for {other}"));
            }
        }
    }
    warnings
}

/// Refuses cores that are not in `online`.
pub fn check_online(owner: &str, mask: &CoreMask, online: &CoreMask) -> Result<(), CoresError> {
    let missing: CoreMask = mask.cores().filter(|&core| !online.contains(core)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (cores, online) = (missing.to_list(), online.to_list());
    Err(CoresError::Offline { owner: owner.to_owned(), cores, online })
}

/// The cores of this machine that are online now.
pub fn online() -> std::io::Result<CoreMask> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    CoreMask::from_list(&text).ok_or_else(|| std::io::Error::other(format!("can't read CPU list {text:?}")))
}

/// What `spp cores MASK...` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoresReport {
    /// One for each mask.
    pub vfs: Vec<VfCores>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// One mask dealt out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfCores {
    /// The mask.
    pub mask: CoreMask,
    /// Vhosts it serves.
    pub n_vhost: u32,
    /// The master core.
    pub master: usize,
    /// What runs where.
    pub components: Vec<CoreUse>,
    /// Cores left over.
    pub unused: Vec<usize>,
}

/// One core and its component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreUse {
    /// Core number.
    pub core: usize,
    /// Component name.
    pub name: String,
    /// Component type.
    #[serde(rename = "type")]
    pub kind: ComponentKind,
}

/// Deals out several masks as one node would, each with its number of vhosts (`None`: as many as the
/// mask has cores for). `online`, when given, adds a warning for cores that are not there.
pub fn report(
    masks: &[(CoreMask, Option<u32>)],
    online: Option<&CoreMask>,
) -> Result<CoresReport, CoresError> {
    let named: Vec<(String, CoreMask)> = masks
        .iter()
        .enumerate()
        .map(|(i, (mask, _))| (format!("vf {} ({mask})", i + 1), mask.clone()))
        .collect();
    let (mut vfs, mut warnings, mut first) = (Vec::new(), Vec::new(), 0);
    for ((owner, mask), (_, wanted)) in named.iter().zip(masks) {
        let fitting = (mask.len().saturating_sub(3) / 2).max(1) as u32;
        let n_vhost = wanted.unwrap_or(fitting);
        let deal = deal(owner, mask, first..first + n_vhost)?;
        first += n_vhost;
        warnings.extend(deal.warning(owner));
        warnings
            .extend(online.and_then(|online| check_online(owner, mask, online).err()).map(|e| e.to_string()));
        let components = deal.components.iter();
        let components =
            components.map(|&(core, role)| CoreUse { core, name: role.name(), kind: role.kind() });
        let components = components.collect();
        vfs.push(VfCores {
            mask: mask.clone(),
            n_vhost,
            master: deal.master,
            components,
            unused: deal.unused,
        });
    }
    check_overlap(&named)?;
    warnings.extend(busy_masters(&named));
    Ok(CoresReport { vfs, warnings })
}

#[cfg(test)]
mod tests;
