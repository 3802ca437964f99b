//! `spp cores`: which core of a mask does what.

use spp_pipeline::config::NodeConfig;
use spp_pipeline::cores::{self, CoreMask, CoresReport, VfCores};

use crate::cli::Cores;
use crate::fail::{Failure, chain};
use crate::output;

/// Deals the masks out as a node would and prints the result. Needs nothing but the masks; where the
/// machine's own cores can be read, cores it lacks become a warning.
pub fn run(args: &Cores) -> Result<(), Failure> {
    let masks = masks(args)?;
    let report =
        cores::report(&masks, cores::online().ok().as_ref()).map_err(|e| Failure::bad_config(chain(&e)))?;
    if args.json {
        return output::json(&report);
    }
    output::line(&human(&report))?;
    for warning in &report.warnings {
        output::complain(&format!("warning: {warning}"));
    }
    Ok(())
}

/// The masks and their numbers of vhosts, from either way of writing them.
fn masks(args: &Cores) -> Result<Vec<(CoreMask, Option<u32>)>, Failure> {
    if args.masks.iter().any(|mask| mask.contains('#')) {
        if !args.vhosts.is_empty() {
            return Err(Failure::usage("the mappings say how many vhosts there are: leave --vhosts away"));
        }
        let config = NodeConfig::from_mappings(&args.masks.join(","));
        let config = config.map_err(|e| Failure::bad_config(chain(&e)))?;
        return Ok(config.vfs.into_iter().map(|vf| (vf.core_mask, Some(vf.num_vhost))).collect());
    }
    if !args.vhosts.is_empty() && args.vhosts.len() != args.masks.len() {
        let (given, wanted) = (args.vhosts.len(), args.masks.len());
        return Err(Failure::usage(format!(
            "--vhosts has {given} numbers for {wanted} masks: give one for each"
        )));
    }
    let mask = |(i, text): (usize, &String)| {
        let mask = text.parse().map_err(|e| Failure::bad_config(chain(&e)))?;
        Ok((mask, args.vhosts.get(i).copied()))
    };
    args.masks.iter().enumerate().map(mask).collect()
}

fn human(report: &CoresReport) -> String {
    report.vfs.iter().enumerate().map(|(i, vf)| human_vf(i + 1, vf)).collect::<Vec<_>>().join("\n\n")
}

fn human_vf(id: usize, vf: &VfCores) -> String {
    let vhosts = if vf.n_vhost == 1 { "vhost" } else { "vhosts" };
    let title = format!("vf {id}: mask {}, {} {vhosts}", vf.mask, vf.n_vhost);
    let row = |core: usize, name: &str, kind: &str| vec![core.to_string(), name.to_owned(), kind.to_owned()];
    let mut rows = vec![vec!["core".to_owned(), "component".to_owned(), "type".to_owned()]];
    rows.push(row(vf.master, "master", "control"));
    rows.extend(vf.components.iter().map(|c| row(c.core, &c.name, c.kind.name())));
    rows.extend(vf.unused.iter().map(|&core| row(core, "-", "unused")));
    format!("{title}\n{}", output::columns(&rows))
}
