//! Who may call OpenIM, and which accounts and users it knows.

use serde_json::{Value, json};

use super::{BATCH, SEND, admin_token, openim, openim_with, single, token_of};
use crate::Settings;
use crate::tests::{Sent, with};

/// Goal: an OA notification comes from the admin or a notification account.
#[tokio::test]
async fn notifications_need_an_account() {
    let im = openim(json!({ "listed_only": true, "notification_accounts": ["notice"] })).await;
    let content = json!({ "notificationName": "n", "notificationType": 1, "text": "t" });
    let from = |sender: &str| {
        let body = with(single("stranger"), "contentType", json!(1400));
        with(
            with(body, "content", content.clone()),
            "sendID",
            json!(sender),
        )
    };
    assert_eq!(im.code(SEND, &from("notice")).await.0, 0);
    assert_eq!(im.code(SEND, &from("imAdmin")).await.0, 0);
    assert_eq!(im.code(SEND, &from("u7")).await.0, 1002);
    assert_eq!(im.code(SEND, &from("nobody")).await.0, 1101);
}

/// Goal: every call needs an operationID and a token. Method: each kind of wrong call.
#[tokio::test]
async fn callers_need_an_operation_and_a_token() {
    let im = openim(json!({})).await;
    let body = single("u1").to_string();
    let token = im.token.as_str();
    let foreign = format!("{token}x");
    let wrong = [
        (Sent::post(SEND, &body).with("token", token), 1001),
        (Sent::post(SEND, &body).with("operationID", "op"), 1001),
        (
            Sent::post(SEND, &body)
                .with("operationID", "op")
                .with("token", "abc"),
            1503,
        ),
        (
            Sent::post(SEND, &body)
                .with("operationID", "op")
                .with("token", &foreign),
            1507,
        ),
    ];
    for (request, code) in wrong {
        let reply = im.mock.send(&request).await;
        assert_eq!(
            (reply.status, reply.json()["errCode"].clone()),
            (200, json!(code))
        );
    }
    assert_eq!(im.mock.handle.stats().accepted, 0);
    assert_eq!(im.mock.get(SEND).await.status, 404);
    assert_eq!(im.call("/msg/none", "op", &json!({})).await.status, 404);
    assert_eq!(im.call("/group/none", "op", &json!({})).await.status, 404);
}

/// Goal: the secret gives tokens, to the admin by one path and to any user by the other; only the
/// admin's is accepted for sending.
#[tokio::test]
async fn only_the_admin_may_send() {
    let im = openim(json!({})).await;
    let ask = async |path: &str, body: Value| {
        let body = body.to_string();
        im.mock
            .send(&Sent::post(path, &body).with("operationID", "op"))
            .await
    };
    let admin = "/auth/get_admin_token";
    let reply = ask(admin, json!({ "secret": "openIM123", "userID": "imAdmin" })).await;
    assert_eq!(reply.json()["data"]["expireTimeSeconds"], 7_776_000);
    let reply = ask(admin, json!({ "secret": "wrong", "userID": "imAdmin" })).await;
    assert_eq!(reply.json()["errCode"], 1002);
    let reply = ask(admin, json!({ "secret": "openIM123", "userID": "u1" })).await;
    assert_eq!(reply.json()["errCode"], 1001);
    let nameless = im.mock.post(admin, &json!({})).await;
    assert_eq!(nameless.json()["errCode"], 1001);

    let old = |user: &str| json!({ "secret": "openIM123", "platformID": 1, "userID": user });
    for (user, code) in [("imAdmin", 0), ("u1", 1002)] {
        let token = token_of(&ask("/auth/user_token", old(user)).await);
        for path in [SEND, BATCH] {
            let body = with(single("u1"), "recvIDs", json!(["u1"])).to_string();
            let request = Sent::post(path, &body)
                .with("operationID", "op")
                .with("token", &token);
            assert_eq!(
                im.mock.send(&request).await.json()["errCode"],
                code,
                "{user} {path}"
            );
        }
    }
}

/// Goal: a token expires or is revoked, and a new one works.
#[tokio::test]
async fn tokens_die() {
    let mut im = openim(json!({ "token_calls": 2 })).await;
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    assert_eq!(im.code(SEND, &single("u1")).await, (1501, 200));
    assert_eq!(im.code(SEND, &single("u1")).await, (1501, 200));

    im.mock
        .post("/_mock/openim", &json!({ "token_calls": null }))
        .await;
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    // The first token has expired, but was not revoked.
    let mut alive = 2;
    for (body, code) in [(json!({}), 1501), (json!({ "code": 1506 }), 1506)] {
        im.token = admin_token(&im.mock).await;
        assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
        let reply = im.mock.post("/_mock/openim/revoke", &body).await;
        assert_eq!(reply.json()["revoked"], alive, "{}", reply.body);
        assert_eq!(im.code(SEND, &single("u1")).await, (code, 200));
        alive = 1;
    }
}

/// Goal: pages list ordinary users, or all accounts, each once and completely.
#[tokio::test]
async fn users_are_listed_in_pages() {
    let settings = Settings {
        users: 5,
        ..Settings::default()
    };
    let im = openim_with(json!({ "notification_accounts": ["notice"] }), settings).await;
    let page = async |path: &str, number: i64, size: i64| {
        let body = json!({ "pagination": { "pageNumber": number, "showNumber": size } });
        im.call(path, "op", &body).await.json()
    };
    let users = "/user/get_users";
    let first = page(users, 1, 3).await;
    assert_eq!(first["data"]["total"], 5);
    assert_eq!(first["data"]["users"][2]["userID"], "u3");
    let last = page(users, 2, 3).await["data"]["users"].clone();
    assert_eq!(last.as_array().unwrap().len(), 2);
    assert_eq!(
        page(users, 3, 3).await["data"],
        json!({ "total": 5, "users": null })
    );

    let all = "/user/get_all_users_uid";
    let mut ids = Vec::new();
    for number in 1..=3 {
        let data = page(all, number, 3).await["data"].clone();
        assert_eq!(data["total"], 7);
        ids.extend(data["userIDs"].as_array().unwrap().clone());
    }
    assert_eq!(ids, ["imAdmin", "notice", "u1", "u2", "u3", "u4", "u5"]);

    for path in [users, all] {
        assert_eq!(page(path, 0, 3).await["errCode"], 1001);
        assert_eq!(page(path, 1, 0).await["errCode"], 1001);
        assert_eq!(
            im.call(path, "op", &json!({})).await.json()["errCode"],
            1001
        );
    }
}

/// Goal: an account check agrees with the result of a send.
#[tokio::test]
async fn accounts_are_checked() {
    let im = openim(json!({ "codes": { "u1": 1004, "u2": 1302 }, "listed_only": true })).await;
    im.mock.set(json!({ "refuse_users": ["u4"] })).await;
    let check = async |ids: Value| {
        let body = json!({ "checkUserIDs": ids });
        im.call("/user/account_check", "op", &body).await.json()
    };
    let results = check(json!(["u1", "u2", "u3", "u4", "nobody"])).await["data"]["results"].clone();
    let statuses: Vec<&Value> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| &result["accountStatus"])
        .collect();
    assert_eq!(statuses, [0, 1, 1, 0, 0]);
    assert_eq!(check(json!(["u1", "u1"])).await["errCode"], 1001);
}
