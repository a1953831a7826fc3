//! `stillframe check`.

use super::{json, show, StoreArgs};
use crate::error::Result;
use crate::probe::{self, Finding};

/// Try what this kernel and our privileges allow; fails if checkpoint and restore cannot work here
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Print nothing
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

#[derive(serde::Serialize)]
struct Answer<'a> {
    ok: bool,
    findings: &'a [Finding],
}

/// Checks.
pub fn run(args: &Args) -> Result<i32> {
    let findings = probe::all(args.store.open()?.root())?;
    let ok = probe::suffices(&findings);
    if args.json {
        println!("{}", json(&Answer { ok, findings: &findings })?);
    } else if !args.quiet {
        print!("{}", show::table(&findings.iter().map(row).collect::<Vec<_>>()));
        println!("{}", if ok { "checkpoint and restore work here" } else { "checkpoint or restore cannot work here: see what is required above" });
    }
    Ok(i32::from(!ok))
}

fn row(finding: &Finding) -> Vec<String> {
    let answer = match (finding.present, finding.required) {
        (true, _) => "yes",
        (false, true) => "NO, required",
        (false, false) => "no",
    };
    let why = finding.problem.as_ref().map_or(String::new(), |problem| format!("{} [{problem}]", finding.cost));
    vec![finding.name.to_owned(), answer.to_owned(), why]
}
