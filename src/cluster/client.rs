//! For clients: where a service is, as any agent tells, and a connection that finds it again.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Where a service is; also the value of its key `endpoint/SERVICE` in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The node that has it; none: nobody just now.
    pub owner: Option<String>,
    /// Its address, which is the same on every server.
    pub address: Option<IpAddr>,
    /// A second address, as the operator wrote it: ADDRESS, or HOST:PORT.
    pub second: Option<String>,
}

/// Asks agents for services.
#[derive(Debug, Clone)]
pub struct Finder {
    agents: Vec<SocketAddr>,
    patience: Duration,
}

impl Finder {
    /// By the `rest` addresses of some agents; each is given `patience` to answer.
    pub fn new(agents: &[SocketAddr], patience: Duration) -> Finder {
        Finder { agents: agents.to_vec(), patience }
    }

    /// Asks one agent after the other where `service` is. `Kind::Busy` if none answers, `Kind::NotFound` if there is no such service.
    pub fn find(&self, service: &str) -> Result<Endpoint> {
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(self.patience)).build();
        let (http, mut why) = (ureq::Agent::from(config), "there is none to ask".to_owned());
        for agent in &self.agents {
            let answer = http.get(format!("http://{agent}/owner/{service}")).call().and_then(|mut answer| Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?)));
            match answer.map(|(status, text)| (status, serde_json::from_str(&text))) {
                Ok((200, Ok(endpoint))) => return Ok(endpoint),
                Ok((404, _)) => return Err(Error::new(Kind::NotFound, format!("the agent at {agent} knows no service {service:?}"))),
                Ok((status, _)) => why = format!("{agent} answers with status {status}"),
                Err(e) => why = format!("{agent}: {e}"),
            }
        }
        Err(Error::new(Kind::Busy, format!("no agent tells where {service} is ({why}); check their rest addresses")))
    }

    /// Connects to `port` of the service: at its address, else at its second one, again and again until `patience` is over.
    pub fn connect(&self, service: &str, port: u16, patience: Duration) -> Result<TcpStream> {
        let end = Instant::now() + patience;
        loop {
            let tried = self.find(service).and_then(|endpoint| self.reach(service, &endpoint, port));
            match tried {
                Err(e) if e.kind() == Kind::NotFound || Instant::now() > end => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(stream) => return Ok(stream),
            }
        }
    }

    fn reach(&self, service: &str, endpoint: &Endpoint, port: u16) -> Result<TcpStream> {
        let mut why = "it has no address".to_owned();
        for address in addresses(endpoint, port) {
            match TcpStream::connect_timeout(&address, self.patience) {
                Ok(stream) => return Ok(stream),
                Err(e) => why = format!("{address}: {e}"),
            }
        }
        Err(Error::new(Kind::Busy, format!("cannot reach {service} ({why})")))
    }
}

/// The addresses to try, in this order.
fn addresses(endpoint: &Endpoint, port: u16) -> Vec<SocketAddr> {
    let second = endpoint.second.iter().flat_map(|second| match second.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        // A name that cannot be resolved is no place to go.
        Err(_) => second.to_socket_addrs().map(Iterator::collect).unwrap_or_default(),
    });
    endpoint.address.iter().map(|&ip| SocketAddr::new(ip, port)).chain(second).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_address_comes_second() {
        let endpoint = |second: &str| Endpoint { owner: None, address: Some("10.0.0.9".parse().unwrap()), second: Some(second.to_owned()) };
        let tried = |second: &str| addresses(&endpoint(second), 80).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(tried("10.0.0.8"), ["10.0.0.9:80", "10.0.0.8:80"]);
        assert_eq!(tried("127.0.0.1:81"), ["10.0.0.9:80", "127.0.0.1:81"]);
        assert_eq!(tried("http://nowhere"), ["10.0.0.9:80"]);
    }

    #[test]
    fn agents_that_are_away_are_said_to_be() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let finder = Finder::new(&[closed], Duration::from_millis(300));
        let e = finder.connect("x", 1, Duration::ZERO).unwrap_err();
        assert!(e.kind() == Kind::Busy && e.to_string().contains("rest addresses"), "{e}");
    }
}
