//! Which cluster is nearest to a host: by network, then data centre, then location, then default. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

/// What makes a host belong to a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Networks.
    pub cidrs: Vec<IpNet>,
    /// Data centres; letter case does not matter.
    pub idcs: Vec<String>,
    /// Locations, `a|b|c` from the widest to the narrowest; letter case does not matter.
    pub locations: Vec<String>,
    /// It takes whom no rule assigns.
    pub default: bool,
}

/// Where a host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// All addresses known of it.
    pub addresses: Vec<IpAddr>,
    /// Its data centre, or empty.
    pub idc: String,
    /// Its location, or empty.
    pub location: String,
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatchedBy {
    /// The longest prefix that holds one of the addresses.
    Cidr,
    /// The same data centre.
    Idc,
    /// The longest common part of the location.
    Location,
    /// None of them.
    Default,
}

impl MatchedBy {
    /// As in answers and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cidr => "cidr",
            Self::Idc => "idc",
            Self::Location => "location",
            Self::Default => "default",
        }
    }
}

/// The index of the nearest of the clusters, or `None` when no rule assigns the host and none is the default. The caller
/// leaves out clusters that nobody answers for. Of equals the first wins.
#[must_use]
pub fn nearest<'r>(
    clusters: impl Iterator<Item = &'r Rules> + Clone,
    host: &Whereabouts,
) -> Option<(usize, MatchedBy)> {
    let best = |score: &dyn Fn(&Rules) -> u32| {
        let scores = clusters.clone().enumerate().map(|(index, rules)| (score(rules), index));
        // Of the highest scores the lowest index.
        scores
            .filter(|(score, _)| *score > 0)
            .max_by_key(|(score, index)| (*score, std::cmp::Reverse(*index)))
            .map(|(_, index)| index)
    };
    if let Some(index) = best(&|rules| cidr_score(rules, &host.addresses)) {
        return Some((index, MatchedBy::Cidr));
    }
    if let Some(index) = best(&|rules| u32::from(same_idc(rules, &host.idc))) {
        return Some((index, MatchedBy::Idc));
    }
    if let Some(index) = best(&|rules| location_score(rules, &host.location)) {
        return Some((index, MatchedBy::Location));
    }
    best(&|rules| u32::from(rules.default)).map(|index| (index, MatchedBy::Default))
}

/// Longer prefixes score higher. A /24 of IPv4 weighs as much as a /96 of IPv6, so that hosts with both kinds are judged by
/// the narrower network. `0.0.0.0/0` still counts as a match.
fn cidr_score(rules: &Rules, addresses: &[IpAddr]) -> u32 {
    let pairs = rules.cidrs.iter().flat_map(|net| addresses.iter().map(move |address| (net, address.to_canonical())));
    let scores = pairs.filter(|(net, address)| net.contains(address)).map(|(net, _)| {
        let factor = if net.max_prefix_len() == 32 { 4 } else { 1 };
        u32::from(net.prefix_len()) * factor + 1
    });
    scores.max().unwrap_or(0)
}

fn same_idc(rules: &Rules, idc: &str) -> bool {
    let idc = idc.trim();
    !idc.is_empty() && rules.idcs.iter().any(|known| known.trim().eq_ignore_ascii_case(idc))
}

fn location_score(rules: &Rules, location: &str) -> u32 {
    let common = |known: &String| {
        let parts = known.split('|').zip(location.split('|'));
        let same = parts.take_while(|(a, b)| !a.trim().is_empty() && a.trim().eq_ignore_ascii_case(b.trim()));
        u32::try_from(same.count()).unwrap_or(u32::MAX)
    };
    rules.locations.iter().map(common).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn rules(cidrs: &[&str], idcs: &[&str], locations: &[&str], default: bool) -> Rules {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rules {
            cidrs: cidrs.iter().map(|net| net.parse().unwrap()).collect(),
            idcs: texts(idcs),
            locations: texts(locations),
            default,
        }
    }

    fn host(addresses: &[&str], idc: &str, location: &str) -> Whereabouts {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Whereabouts { addresses, idc: idc.to_owned(), location: location.to_owned() }
    }

    #[test]
    fn each_rule_in_turn() {
        let clusters = [
            rules(&["10.0.0.0/8"], &["one"], &["eu|de"], false),
            rules(&["10.1.0.0/16", "fd00::/64"], &["two"], &["eu|de|fra"], false),
            rules(&[], &["ONE"], &["us"], true),
        ];
        for (host, expected) in [
            (host(&["10.2.3.4"], "two", ""), Some((0, MatchedBy::Cidr))),
            (host(&["10.1.3.4"], "one", ""), Some((1, MatchedBy::Cidr))),
            (host(&["::ffff:10.1.3.4"], "", ""), Some((1, MatchedBy::Cidr))),
            (host(&["10.2.3.4", "fd00::5"], "", ""), Some((1, MatchedBy::Cidr))),
            (host(&["192.168.0.1"], "Two", "us"), Some((1, MatchedBy::Idc))),
            (host(&[], "one", "us"), Some((0, MatchedBy::Idc))),
            (host(&[], "three", "EU|DE|FRA|rack"), Some((1, MatchedBy::Location))),
            (host(&[], "", "eu|de|ber"), Some((0, MatchedBy::Location))),
            (host(&[], "", "eu"), Some((0, MatchedBy::Location))),
            (host(&[], "", "asia|de"), Some((2, MatchedBy::Default))),
            (host(&[], "", ""), Some((2, MatchedBy::Default))),
            (host(&["2001:db8::1"], " ", "|"), Some((2, MatchedBy::Default))),
        ] {
            assert_eq!(nearest(clusters.iter(), &host), expected, "{host:?}");
        }
        assert_eq!(nearest(clusters[..2].iter(), &host(&[], "", "")), None);
        assert_eq!(nearest([].iter(), &host(&[], "", "")), None);
        let everything = [rules(&["0.0.0.0/0"], &[], &[], false)];
        assert_eq!(nearest(everything.iter(), &host(&["1.2.3.4"], "", "")), Some((0, MatchedBy::Cidr)));
    }

    fn some_net() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that networks overlap.
        (0u32..16, 0u8..=32)
            .prop_map(|(bits, len)| ipnet::Ipv4Net::new(Ipv4Addr::from(bits << 28), len).unwrap().trunc().into())
    }

    fn some_rules() -> impl Strategy<Value = Rules> {
        let word = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
        let location = prop::collection::vec(word(), 1..4).prop_map(|words| words.join("|"));
        (
            prop::collection::vec(some_net(), 0..3),
            prop::collection::vec(word(), 0..2),
            prop::collection::vec(location, 0..2),
            any::<bool>(),
        )
            .prop_map(|(cidrs, idcs, locations, default)| Rules { cidrs, idcs, locations, default })
    }

    fn some_host() -> impl Strategy<Value = Whereabouts> {
        (prop::collection::vec(0u32..16, 0..3), "[abc]?", "[abc](\\|[abc]){0,2}|").prop_map(
            |(addresses, idc, location)| Whereabouts {
                addresses: addresses.into_iter().map(|bits| Ipv4Addr::from(bits << 28).into()).collect(),
                idc,
                location,
            },
        )
    }

    proptest! {
        #[test]
        fn the_winner_wins_against_each(clusters in prop::collection::vec(some_rules(), 0..8), host in some_host()) {
            let answer = nearest(clusters.iter(), &host);
            if let Some((winner, by)) = answer {
                for (index, other) in clusters.iter().enumerate().filter(|(index, _)| *index != winner) {
                    let pair = if index < winner { [other, &clusters[winner]] } else { [&clusters[winner], other] };
                    let expected = usize::from(index < winner);
                    prop_assert_eq!(nearest(pair.into_iter(), &host), Some((expected, by)));
                }
            } else {
                prop_assert!(clusters.iter().all(|rules| nearest(std::iter::once(rules), &host).is_none()));
            }
        }

        #[test]
        fn losers_do_not_matter(clusters in prop::collection::vec(some_rules(), 1..8), host in some_host(), gone: prop::sample::Index) {
            let gone = gone.index(clusters.len());
            let before = nearest(clusters.iter(), &host);
            if before.is_some_and(|(winner, _)| winner != gone) {
                let rest: Vec<_> = clusters.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, rules)| rules).collect();
                let after = nearest(rest.into_iter(), &host);
                prop_assert_eq!(after, before.map(|(winner, by)| (winner - usize::from(gone < winner), by)));
            }
        }

        #[test]
        fn the_longest_prefix_decides(clusters in prop::collection::vec(some_rules(), 1..8), host in some_host()) {
            let longest = clusters
                .iter()
                .flat_map(|rules| &rules.cidrs)
                .filter(|net| host.addresses.iter().any(|address| net.contains(address)))
                .map(IpNet::prefix_len)
                .max();
            match (longest, nearest(clusters.iter(), &host)) {
                (Some(longest), Some((winner, MatchedBy::Cidr))) => {
                    let has = |net: &IpNet| net.prefix_len() == longest && host.addresses.iter().any(|address| net.contains(address));
                    prop_assert!(clusters[winner].cidrs.iter().any(has));
                }
                (None, Some((_, by))) => prop_assert_ne!(by, MatchedBy::Cidr),
                (None, None) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn no_text_panics(idc in ".*", location in ".*", known in ".*") {
            let clusters = [Rules { idcs: vec![known.clone()], locations: vec![known], ..Rules::default() }];
            let _ = nearest(clusters.iter(), &Whereabouts { idc, location, ..Whereabouts::default() });
        }
    }
}
