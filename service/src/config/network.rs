//! Lists of networks, in which a bare address is a network of one machine.

/// For `#[serde(with = "service::config::networks")]` on `Vec<IpNet>`.
pub mod networks {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    /// One of the list; each is read for itself, so that a problem has its place.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Network(IpNet);

    impl TryFrom<String> for Network {
        type Error = String;

        fn try_from(text: String) -> Result<Self, String> {
            let network = match text.parse::<IpAddr>() {
                Ok(address) => Ok(IpNet::from(address)),
                Err(_) => text.parse(),
            };
            let expected = || format!("{text:?} is no network, expected for example \"10.0.0.0/8\" or \"10.0.0.1\"");
            network.map(Self).map_err(|_| expected())
        }
    }

    /// As networks.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(value: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    /// Networks, or addresses.
    ///
    /// # Errors
    /// When one of them is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
        let networks = Vec::<Network>::deserialize(deserializer)?;
        Ok(networks.into_iter().map(|network| network.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Default, Serialize, Deserialize)]
    struct Config {
        #[serde(with = "super::networks")]
        proxies: Vec<IpNet>,
    }

    impl crate::config::Validate for Config {
        fn validate(&self, _problems: &mut crate::config::Problems) {}
    }

    fn load(text: &str) -> Result<Config, crate::config::ConfigError> {
        crate::config::load_from("c.toml", text, "X", [])
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        let config = load("proxies = ['10.0.0.0/8', '10.0.0.1', '2001:db8::1']").unwrap();
        let texts: Vec<String> = config.proxies.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "10.0.0.1/32", "2001:db8::1/128"]);
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again.proxies, config.proxies);
        for bad in ["10.0.0.0/33", "10.0.0", "proxy.example", ""] {
            let error = load(&format!("proxies = ['10.0.0.0/8', '{bad}']")).unwrap_err().to_string();
            assert!(error.contains("proxies[1]") && error.contains("is no network, expected"), "{error}");
        }
    }
}
