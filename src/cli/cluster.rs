//! The commands of a cluster: `agent` and what operators use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::show::parse_duration;
use super::{json, show};
use crate::cluster::agent::{self, open_store};
use crate::cluster::config::Config;
use crate::cluster::operate;
use crate::cluster::state::State;
use crate::cluster::view::{Keys, View};
use crate::error::{Error, Kind, Result};

/// How long a request to one member of the store may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the cluster is described.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// The cluster's configuration
    #[arg(long, value_name = "FILE", env = "STILLFRAME_CLUSTER", default_value = "/etc/stillframe/cluster.toml")]
    config: PathBuf,
}

/// A way to the cluster.
struct Way {
    config: Config,
    state: Arc<dyn State>,
    keys: Keys,
}

impl ConfigArgs {
    fn way(&self) -> Result<Way> {
        let config = Config::load(&self.config)?;
        Ok(Way { state: open_store(&config, None, PATIENCE)?, keys: Keys::of(&config.cluster), config })
    }
}

/// Turns refusals of policy and a lost majority into their exit statuses.
fn with_status(done: Result<()>) -> Result<i32> {
    let status = match &done {
        Err(e) if e.kind() == Kind::Usage => 2,
        Err(e) if e.kind() == Kind::Refused => 3,
        Err(e) if e.kind() == Kind::Busy => 4,
        _ => return done.map(|()| 0),
    };
    if let Err(e) = done {
        eprintln!("stillframe: {e}");
    }
    Ok(status)
}

/// Keep services alive on this server, together with the agents of the others
///
/// Reads the configuration, joins the cluster and runs until SIGTERM, which moves what runs here to other servers first. What
/// runs here ends when the lease is lost, whatever becomes of this command. Exit status: 0, 1 if something failed, 2 if the
/// configuration is wrong, 4 if the store cannot be reached.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Which node of the configuration this server is [default: its host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// Runs the agent.
pub fn agent(args: &AgentArgs) -> Result<i32> {
    with_status((|| {
        let config = Config::load(&args.config.config)?;
        let name = match &args.node {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        agent::run(&config, config.node(&name)?).map(drop)
    })())
}

/// Show the nodes and services of the cluster
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Show it anew every second
    #[arg(long)]
    watch: bool,
}

/// Shows.
pub fn status(args: &StatusArgs) -> Result<i32> {
    with_status((|| {
        let way = args.config.way()?;
        loop {
            let view = operate::view(&*way.state, &way.keys)?;
            let text = if args.json { json(&operate::as_json(&view))? + "\n" } else { table(&way.config, &view) };
            // Home and clear, as `watch` does.
            let clear = if args.watch && !args.json { "\x1b[H\x1b[2J" } else { "" };
            print!("{clear}{text}");
            if !args.watch {
                return Ok(());
            }
            use std::io::Write;
            std::io::stdout().flush().map_err(|e| Error::io("cannot write", e))?;
            std::thread::sleep(Duration::from_secs(1));
        }
    })())
}

fn table(config: &Config, view: &View) -> String {
    let mut text = String::new();
    if view.paused {
        text += "PAUSED: nothing is started or moved by itself; `stillframe resume` ends that\n";
    }
    let bare = view.services.iter().filter(|(_, service)| service.protected == Some(false)).map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    if !bare.is_empty() {
        text += &format!("NO FURTHER FAILOVER: no other node can take over {}\n", bare.join(", "));
    }
    let mut rows = vec![["SERVICE", "OWNER", "STATE", "FAILOVER", "FRAME", "ADDRESS"].map(str::to_owned).to_vec()];
    for (name, service) in &view.services {
        let Some(spec) = &service.spec else { continue };
        let owner = service.owner.as_ref().map_or("-".to_owned(), |owner| owner.node.clone());
        let state = service.phase.as_ref().map_or("waiting".to_owned(), |phase| word(phase.state) + &if phase.why.is_empty() { String::new() } else { format!(" ({})", phase.why) });
        let failover = match service.protected {
            Some(true) => "ready",
            Some(false) => "none left",
            None => "-",
        };
        let frame = service.frame.as_ref().map_or("-".to_owned(), |frame| show::age(frame.taken_ns));
        rows.push(vec![name.clone(), owner, state, failover.to_owned(), frame, spec.address.map_or("-".to_owned(), |address| address.to_string())]);
    }
    text += &show::table(&rows);
    text += "\n";
    let mut rows = vec![["NODE", "STATE", "LOAD", "BEATS"].map(str::to_owned).to_vec()];
    for node in &config.nodes {
        let info = view.nodes.get(&node.name);
        let state = match info {
            _ if view.fenced.contains(&node.name) => "fenced",
            None => "down",
            Some(info) if info.leaving => "leaving",
            Some(_) if view.drained.contains(&node.name) => "drained",
            Some(_) => "up",
        };
        let load = info.map_or("-".to_owned(), |info| format!("{}/{}", view.load(&node.name), info.capacity));
        rows.push(vec![node.name.clone(), state.to_owned(), load, node.beats.to_string()]);
    }
    text + &show::table(&rows)
}

fn word(state: crate::cluster::view::State) -> String {
    json(&state).unwrap_or_default().trim_matches('"').to_owned()
}

/// Options of commands that move a service
#[derive(Debug, clap::Args)]
pub struct MoveArgs {
    /// The service
    service: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// The node it is to go to [default: the best]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Return when it is asked for, not when it is done
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

/// Options of a failback
#[derive(Debug, clap::Args)]
pub struct FailbackArgs {
    /// The service
    service: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// Return when it is asked for, not when it is done
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

/// `switchover` and `failover`.
pub fn move_service(verb: &str, args: &MoveArgs) -> Result<i32> {
    with_status(moved(verb, &args.service, &args.config, args.to.clone(), (!args.no_wait).then_some(args.timeout)))
}

/// `failback`.
pub fn failback(args: &FailbackArgs) -> Result<i32> {
    with_status(moved("failback", &args.service, &args.config, None, (!args.no_wait).then_some(args.timeout)))
}

fn moved(verb: &str, service: &str, config: &ConfigArgs, to: Option<String>, wait: Option<Duration>) -> Result<()> {
    let way = config.way()?;
    let from = operate::owner(&*way.state, &way.keys, service)?;
    operate::request(&*way.state, &way.keys, verb, service, to, way.config.shared)?;
    if let Some(patience) = wait {
        let to = operate::await_done(&*way.state, &way.keys, service, &from, patience)?;
        println!("{service}: {from} -> {to}");
    }
    Ok(())
}

/// Options of commands for the whole cluster
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// `pause` and `resume`.
pub fn pause(args: &ClusterArgs, set: bool) -> Result<i32> {
    with_status((|| {
        let way = args.config.way()?;
        operate::mark(&*way.state, &way.keys.pause(), set)
    })())
}

/// Options of commands for a node
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// The node
    node: String,
    #[command(flatten)]
    config: ConfigArgs,
}

/// `drain` and `undrain`; the latter also takes a fenced node back.
pub fn drain(args: &NodeArgs, set: bool) -> Result<i32> {
    with_status((|| {
        let way = args.config.way()?;
        way.config.node(&args.node)?;
        if !set {
            operate::mark(&*way.state, &way.keys.at("fenced", &args.node), false)?;
        }
        operate::mark(&*way.state, &way.keys.at("drained", &args.node), set)
    })())
}

/// Options of `fence`
#[derive(Debug, clap::Args)]
pub struct FenceArgs {
    /// The node
    node: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// The node is off for certain: do not run its fence command
    #[arg(long)]
    confirmed: bool,
}

/// `fence`.
pub fn fence(args: &FenceArgs) -> Result<i32> {
    with_status((|| {
        let way = args.config.way()?;
        let node = way.config.node(&args.node)?;
        match &node.fence {
            _ if args.confirmed => {}
            None => return Err(Error::refused(format!("node {} has no fence command; make sure that it is off and say --confirmed", args.node))),
            Some(command) => {
                let status = std::process::Command::new("sh").args(["-c", command]).env("STILLFRAME_ABOUT", &args.node).status();
                let status = status.map_err(|e| Error::io("cannot start a shell for the fence command", e))?;
                if !status.success() {
                    return Err(Error::new(Kind::Io, format!("the fence command of {} failed: {status}; nothing is taken over", args.node)));
                }
            }
        }
        operate::fence(&*way.state, &way.keys, &args.node)
    })())
}

/// Options of `history`
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// `history`.
pub fn history(args: &HistoryArgs) -> Result<i32> {
    with_status((|| {
        let way = args.config.way()?;
        let past = operate::history(&*way.state, &way.keys)?;
        if args.json {
            println!("{}", json(&past)?);
            return Ok(());
        }
        let mut rows = vec![["AGE", "NODE", "SERVICE", "WHAT", "TEXT"].map(str::to_owned).to_vec()];
        rows.extend(past.into_iter().map(|past| vec![show::age(past.at_ms * 1_000_000), past.node, past.service, past.what, past.text]));
        print!("{}", show::table(&rows));
        Ok(())
    })())
}

/// Options of `apply`
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// The configuration
    file: PathBuf,
    /// Only say whether it is right
    #[arg(long)]
    check: bool,
}

/// `apply`.
pub fn apply(args: &ApplyArgs) -> Result<i32> {
    with_status((|| {
        let config = Config::load(&args.file)?;
        if args.check {
            println!("{}: {} nodes, {} services", args.file.display(), config.nodes.len(), config.services.len());
            return Ok(());
        }
        let state = open_store(&config, None, PATIENCE)?;
        let words = operate::apply(&*state, &Keys::of(&config.cluster), &config)?;
        println!("{}", if words.is_empty() { "nothing changed".to_owned() } else { words.join(", ") });
        Ok(())
    })())
}
