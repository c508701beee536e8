use super::*;

/// Compares the whole text for one target: changing a name or an argument affects every broker in
/// use, so it must be changed here too.
#[test]
fn the_topology_of_one_target_reads_so() {
    let text = topology("fanwise", &["wk"]).to_string();
    let expected = include_str!("golden.txt");
    assert!(text == expected, "topology show now prints\n{text}");
}

#[test]
fn json_tells_the_same() {
    let json = serde_json::to_value(topology("fanwise", &["wk"])).unwrap();
    let rung = json["queues"]
        .as_array()
        .unwrap()
        .iter()
        .find(|queue| queue["name"] == "fanwise.retry.5m.v3")
        .unwrap();
    assert_eq!(rung["arguments"]["x-message-ttl"], 300_000);
    assert_eq!(rung["arguments"]["x-dead-letter-exchange"], "fanwise.back");
    assert_eq!(json["exchanges"][0]["kind"], "direct");
}

#[test]
fn every_queue_hangs_on_an_exchange_of_ours_and_has_its_own_name() {
    let topology = topology("x", &["a", "b"]);
    let exchanges: Vec<_> = topology.exchanges.iter().map(|e| &e.name).collect();
    let mut queues: Vec<_> = topology.queues.iter().map(|q| &q.name).collect();
    for queue in &topology.queues {
        for exchange in [&queue.exchange].into_iter().chain(&queue.also) {
            assert!(exchanges.contains(&exchange), "{}", queue.name);
        }
        for name in queue.arguments.keys() {
            assert!(!why(name).is_empty(), "{name} has a reason");
        }
        if let Some(Value::Text(target)) = queue.arguments.get("x-dead-letter-exchange") {
            assert!(exchanges.contains(&target), "{}", queue.name);
        }
    }
    queues.sort();
    queues.dedup();
    assert_eq!(queues.len(), topology.queues.len());
}

/// -1 drops messages on 3.10, no limit drops them after 20 readings on 4.x.
#[test]
fn every_limit_is_a_number_that_all_versions_take() {
    for queue in topology("x", &["a"]).queues {
        match queue.arguments.get("x-delivery-limit") {
            Some(Value::Number(limit)) => assert!(*limit >= 20, "{}", queue.name),
            None | Some(Value::Text(_)) => panic!("{}", queue.name),
        }
    }
}

#[test]
fn any_delay_leads_to_a_rung_that_exists() {
    let names = Names::new("x");
    let exchanges = topology::<&str>("x", &[]).exchanges;
    for seconds in [0, 1, 4, 5, 59, 61, 1800, 100_000] {
        let name = names.retry_exchange(Duration::from_secs(seconds));
        assert!(exchanges.iter().any(|e| e.name == name), "{name}");
    }
}

/// An older worker declares and publishes to other names than this one: queues with other arguments
/// would be refused, and a rung with two queues returns everything twice.
#[test]
fn the_ladder_shares_no_name_with_the_one_before() {
    let now = topology::<&str>("x", &[]);
    let old = retired("x");
    assert_eq!((old.exchanges.len(), old.queues.len()), (12, 12));
    for exchange in &old.exchanges {
        assert!(!now.exchanges.iter().any(|it| it.name == exchange.name));
    }
    for queue in &old.queues {
        assert!(!now.queues.iter().any(|it| it.name == queue.name));
    }
}

/// Promise 11: a message that cannot leave a rung holds it up for all lanes, so every way out leads
/// to a queue.
#[test]
fn what_leaves_a_rung_for_no_lane_has_a_place_to_go() {
    let topology = topology("x", &["a"]);
    let back = topology.exchanges.iter().find(|it| it.name == "x.back");
    let stray = back.unwrap().alternate.as_deref();
    assert!(
        topology
            .queues
            .iter()
            .any(|it| Some(it.exchange.as_str()) == stray)
    );
    for queue in &topology.queues {
        let out = queue.arguments.get("x-dead-letter-exchange");
        if queue.name.contains(".retry.") {
            assert_eq!(
                out,
                Some(&Value::Text("x.back".to_owned())),
                "{}",
                queue.name
            );
        }
        let comes_back = ["x.lanes", "x.jobs"].contains(&&*queue.exchange);
        assert_eq!(
            queue.also.as_deref(),
            comes_back.then_some("x.back"),
            "{}",
            queue.name
        );
    }
}
