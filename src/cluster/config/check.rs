//! From text to a configuration that makes sense.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;

use super::{Config, Flaw, Monitor, Node, Raw, Service, Store};

/// What a name may hold: it becomes part of keys, files and interfaces.
fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.len() <= 64 && text.chars().all(good) && !text.starts_with('.')
}

/// The text, to say in which line something is.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn line(&self, at: usize) -> usize {
        self.0.as_bytes()[..at.min(self.0.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// A flaw in `field` of the table that `span` covers; in the table's first line if the field is not written.
    fn flaw(&self, span: Range<usize>, field: &str, what: &str) -> Flaw {
        let is_field = |line: &str| line.trim_start().strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='));
        let first = self.line(span.start);
        let table = self.0.lines().enumerate().skip(first - 1);
        // The next table begins where a line does with a bracket.
        let own = table.take_while(|(at, line)| *at < first || !line.starts_with("[["));
        let line = own.into_iter().find(|(_, line)| is_field(line)).map_or(first, |(at, _)| at + 1);
        Flaw { line, what: format!("{field}: {what}") }
    }
}

impl Config {
    /// Parses and checks.
    pub fn parse(text: &str) -> Result<Config, Flaw> {
        let lines = Lines(text);
        let raw: Raw = toml::from_str(text).map_err(|e| Flaw {
            line: e.span().map_or(1, |span| lines.line(span.start)),
            what: e.message().replace('\n', " "),
        })?;
        let config = Config {
            store: store(&raw, &lines)?,
            cluster: raw.cluster.get_ref().clone(),
            frames: raw.frames.get_ref().clone(),
            shared: raw.shared,
            timings: raw.timings.as_ref().map(|timings| timings.get_ref().clone()).unwrap_or_default(),
            alerts: raw.alerts.clone(),
            nodes: raw.node.iter().map(|node| node.get_ref().clone()).collect(),
            services: raw.service.iter().map(|service| service.get_ref().clone()).collect(),
        };
        whole(&raw, &config, &lines)?;
        raw.node.iter().enumerate().try_for_each(|(at, node)| check_node(node, &raw.node[..at], &config, &lines))?;
        raw.service.iter().enumerate().try_for_each(|(at, service)| check_service(service, &raw.service[..at], &config, &lines))?;
        Ok(config)
    }
}

fn store(raw: &Raw, lines: &Lines<'_>) -> Result<Store, Flaw> {
    let flaw = |field: &str, what: &str| Err(lines.flaw(0..0, field, what));
    match (raw.store.get_ref().as_str(), &raw.endpoints, &raw.path) {
        ("etcd", Some(endpoints), None) => match endpoints.get_ref().iter().find(|url| !url.starts_with("http://")) {
            _ if endpoints.get_ref().is_empty() => flaw("endpoints", "name at least one member, such as \"http://10.0.0.1:2379\""),
            Some(url) => flaw("endpoints", &format!("{url:?} must begin with http:// (TLS is not spoken: keep etcd on a private network)")),
            None => Ok(Store::Etcd(endpoints.get_ref().iter().map(|url| url.trim_end_matches('/').to_owned()).collect())),
        },
        ("etcd", None, None) => flaw("endpoints", "is missing; store = \"etcd\" needs the URLs of its members"),
        ("local", None, Some(path)) if path.is_absolute() => Ok(Store::Local(path.clone())),
        ("local", None, _) => flaw("path", "store = \"local\" needs an absolute directory"),
        ("etcd", _, Some(_)) => flaw("path", "belongs to store = \"local\""),
        ("local", Some(_), _) => flaw("endpoints", "belongs to store = \"etcd\""),
        (other, ..) => flaw("store", &format!("{other:?} is neither \"etcd\" nor \"local\"")),
    }
}

fn whole(raw: &Raw, config: &Config, lines: &Lines<'_>) -> Result<(), Flaw> {
    if !is_name(&config.cluster) {
        return Err(lines.flaw(0..0, "cluster", "is no name: letters, digits, '.', '_' and '-', 64 at most"));
    }
    if !config.frames.is_absolute() {
        return Err(lines.flaw(0..0, "frames", "must be an absolute path"));
    }
    if config.nodes.is_empty() {
        return Err(Flaw { line: 1, what: "node: there is none; add a [[node]] for each server".to_owned() });
    }
    if let Some(url) = config.alerts.webhook.as_ref().filter(|url| !url.starts_with("http://")) {
        return Err(lines.flaw(0..0, "webhook", &format!("{url:?} must begin with http://")));
    }
    config.timings.check().map_err(|what| {
        let span = raw.timings.as_ref().map_or(0..0, Spanned::span);
        let (field, what) = what.split_once(": ").unwrap_or(("timings", &what));
        lines.flaw(span, field, what)
    })
}

fn check_node(node: &Spanned<Node>, before: &[Spanned<Node>], config: &Config, lines: &Lines<'_>) -> Result<(), Flaw> {
    let flaw = |field: &str, what: &str| Err(lines.flaw(node.span(), field, what));
    let own = node.get_ref();
    if !is_name(&own.name) {
        return flaw("name", "is no name: letters, digits, '.', '_' and '-', 64 at most");
    }
    if before.iter().any(|other| other.get_ref().name == own.name) {
        return flaw("name", &format!("there are two nodes {:?}", own.name));
    }
    if before.iter().any(|other| other.get_ref().beats == own.beats) {
        return flaw("beats", &format!("two nodes have {}", own.beats));
    }
    if own.watchdog.is_some() && config.timings.ttl.as_ms() < 2000 {
        return flaw("watchdog", "counts whole seconds and must bite before a lease ends: ttl must be 2s at least");
    }
    Ok(())
}

fn check_service(service: &Spanned<Service>, before: &[Spanned<Service>], config: &Config, lines: &Lines<'_>) -> Result<(), Flaw> {
    let flaw = |field: &str, what: &str| Err(lines.flaw(service.span(), field, what));
    let own = service.get_ref();
    if !is_name(&own.name) {
        return flaw("name", "is no name: letters, digits, '.', '_' and '-', 64 at most");
    }
    if before.iter().any(|other| other.get_ref().name == own.name) {
        return flaw("name", &format!("there are two services {:?}", own.name));
    }
    if own.command.is_empty() {
        return flaw("command", "is empty; give the program and its arguments");
    }
    if own.nodes.is_empty() {
        return flaw("nodes", "is empty; list the servers it may run on, the preferred one first");
    }
    let mut seen = BTreeSet::new();
    for standby in &own.nodes {
        if !config.nodes.iter().any(|node| node.name == standby.node()) {
            return flaw("nodes", &format!("there is no [[node]] {:?}", standby.node()));
        }
        if !seen.insert(standby.node()) {
            return flaw("nodes", &format!("{:?} is listed twice", standby.node()));
        }
    }
    if let Some(lacks) = own.address.and_then(|_| config.nodes.iter().find(|node| seen.contains(node.name.as_str()) && node.interface.is_none())) {
        return flaw("address", &format!("node {:?} has no interface (a bridge) to join it to", lacks.name));
    }
    if own.address.is_some_and(|address| before.iter().any(|other| other.get_ref().address.is_some_and(|taken| taken.ip == address.ip))) {
        return flaw("address", "another service has it");
    }
    if own.gateway.is_some_and(|gateway| own.address.is_none_or(|address| address.ip.is_ipv4() != gateway.is_ipv4())) {
        return flaw("gateway", "needs an address of the same family");
    }
    if own.keep == 0 {
        return flaw("keep", "must be 1 at least");
    }
    if own.every.is_some_and(|every| every.as_ms() < 10) {
        return flaw("every", "must be 10ms at least");
    }
    if own.full_every == 0 {
        return flaw("full_every", "must be 1 at least");
    }
    if own.every_written.is_some_and(|size| size.0 == 0) {
        return flaw("every_written", "must not be zero");
    }
    match own.monitor.iter().find_map(unclear) {
        Some(what) => flaw("monitor", what),
        None => Ok(()),
    }
}

fn unclear(monitor: &Monitor) -> Option<&'static str> {
    let kinds = usize::from(monitor.tcp.is_some()) + usize::from(monitor.http.is_some()) + usize::from(monitor.script.is_some());
    let port = |text: &String| text.split('/').next().is_some_and(|port| port.parse::<u16>().is_ok());
    match monitor {
        _ if kinds != 1 => Some("needs exactly one of tcp, http and script"),
        Monitor { http: Some(http), .. } if !port(http) => Some("http is written PORT/PATH, such as \"80/health\""),
        Monitor { failures: 0, .. } => Some("failures must be 1 at least"),
        _ if monitor.every.0.is_zero() || monitor.timeout.0.is_zero() => Some("every and timeout must not be zero"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::config::Role;

    const GOOD: &str = r#"cluster = "shop"
store = "etcd"
endpoints = ["http://10.0.0.1:2379", "http://10.0.0.2:2379/"]
frames = "/srv/frames"

[timings]
ttl = "3s"

[[node]]
name = "a"
beats = "10.0.0.1:7400"
interface = "br0"

[[node]]
name = "b"
beats = "10.0.0.2:7400"
interface = "br0"

[[service]]
name = "db"
command = ["redis-server"]
nodes = ["a", { node = "b", role = "backup" }]
address = "10.0.0.9/24"
every = "500ms"
monitor = [{ tcp = 6379 }]
"#;

    #[test]
    fn a_configuration_is_read() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.store, Store::Etcd(vec!["http://10.0.0.1:2379".into(), "http://10.0.0.2:2379".into()]));
        let service = &config.services[0];
        assert_eq!(service.nodes.iter().map(|standby| (standby.node(), standby.role())).collect::<Vec<_>>(), [("a", Role::Failover), ("b", Role::Backup)]);
        assert_eq!((service.every.unwrap().as_ms(), service.keep, service.address.unwrap().to_string().as_str()), (500, 3, "10.0.0.9/24"));
        let json = serde_json::to_string(service).unwrap();
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Service>(&json).unwrap()).unwrap(), json, "specs travel as JSON");
    }

    /// With `from` replaced by `to`, the error is in `line` and says `what`.
    #[track_caller]
    fn refused(from: &str, to: &str, line: usize, what: &str) {
        assert!(GOOD.contains(from));
        let flaw = Config::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert_eq!(flaw.line, line, "{flaw:?}");
        assert!(flaw.what.contains(what), "{flaw:?}");
    }

    #[test]
    fn errors_name_line_and_field() {
        refused("ttl = \"3s\"", "ttl = \"2s\"", 7, "ttl: 0.7 of it is 1400 ms");
        refused("ttl = \"3s\"", "ttl = \"1500ms\"", 7, "whole seconds");
        refused("ttl = \"3s\"", "ttl = \"3\"", 7, "is no time");
        refused("ttl", "tttl", 7, "tttl");
        refused("\"etcd\"", "\"zookeeper\"", 2, "store:");
        refused("http://10.0.0.1", "https://10.0.0.1", 3, "endpoints:");
        refused("name = \"b\"", "name = \"a\"", 15, "two nodes");
        refused("10.0.0.2:7400", "10.0.0.1:7400", 16, "beats:");
        refused("10.0.0.2:7400", "10.0.0.2", 16, "");
        refused("nodes = [\"a\"", "nodes = [\"z\"", 22, "nodes: there is no [[node]] \"z\"");
        refused("10.0.0.9/24", "10.0.0.9", 23, "no address");
        refused("interface = \"br0\"\n\n[[service]]", "\n[[service]]", 22, "address: node \"b\"");
        refused("tcp = 6379", "tcp = 6379, script = \"true\"", 25, "monitor: needs exactly one");
        refused("every = \"500ms\"", "every = \"1ms\"", 24, "every:");
        refused("[\"redis-server\"]", "[]", 21, "command:");
        refused("every = \"500ms\"", "every_written = \"1MB\"", 24, "\"1MB\" is no amount of memory");
        refused("every = \"500ms\"", "every_written = \"0MiB\"", 24, "every_written: must not be zero");
        refused("every = \"500ms\"", "full_every = 0", 24, "full_every:");
    }

    #[test]
    fn a_watchdog_bites_before_a_lease_ends() {
        let fast = GOOD.replace("ttl = \"3s\"", "ttl = \"1s\"\nelection = \"200ms\"\nrenew = \"150ms\"");
        let flaw = Config::parse(&fast.replacen("interface", "watchdog = \"/dev/watchdog\"\ninterface", 1)).unwrap_err();
        assert!(flaw.line == 14 && flaw.what.contains("ttl must be 2s"), "{flaw:?}");
    }

    #[test]
    fn default_timings_outlast_an_election() {
        let fast = GOOD.replace("ttl = \"3s\"", "ttl = \"1s\"\nelection = \"200ms\"\nrenew = \"150ms\"");
        Config::parse(&fast).unwrap();
        Config::parse(&GOOD.replace("[timings]\nttl = \"3s\"\n", "")).unwrap();
    }
}
