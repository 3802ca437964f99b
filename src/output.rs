//! How results reach stdout: JSON, or aligned columns for people.

use std::io::{self, Write};

use serde::Serialize;

use crate::fail::Failure;

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Failure::failed(format!("can't write JSON: {e}")))?;
    line(&text)
}

/// Prints a line (or several). A closed pipe ends nothing: whoever reads has seen enough.
pub fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("can't write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line on stderr behind `spp: `. When nobody reads it, nobody misses it.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "spp: {text}");
}

/// Rows as columns, two blanks between them, the first row being the headings. Numbers align right.
pub fn columns(rows: &[Vec<String>]) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n).map(|c| width(c).unwrap_or(0)).collect();
    let is_number = |cell: &str| cell.ends_with('%') || cell.bytes().all(|c| c.is_ascii_digit());
    let right: Vec<bool> = (0..n)
        .map(|c| rows.iter().skip(1).filter_map(|row| row.get(c)).all(|cell| is_number(cell)))
        .collect();
    let mut lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate().map(|(c, cell)| match right[c] {
            true => format!("{cell:>width$}", width = widths[c]),
            false => format!("{cell:<width$}", width = widths[c]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |text, line| text + "\n" + &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_align_right() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text =
            columns(&[row(&["port", "packets"]), row(&["vhost:10", "7"]), row(&["phy:0", "123456789"])]);
        assert_eq!(text, "port        packets\nvhost:10          7\nphy:0     123456789");
    }
}
