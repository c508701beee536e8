//! The drop-in endpoints as operations. Each system documents its own interface; here are its paths,
//! an example of a call, and what Fanwise adds.

use schemars::{Schema, SchemaGenerator, json_schema};

use super::{Operation, json, text};

const ABOUT: &str = "Answers as the system does, with its credentials, limits, codes and shapes, for \
an app that has this door (`[apps.NAME.SYSTEM]`). The header `Fanwise-Job` names the jobs that the call \
made, and `Fanwise-Pending` the number of recipients without an outcome. `docs/drop-in.md` has the details.";

const ANSWER: &str = "The answer of the system. Refusals have its form too, whatever their status.";

const CLOSED: &str =
    "No app has this door, so nothing is at this path. Without a token the status is 401.";

/// A body or an answer in the form of a system.
fn system_form(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "array"],
        "description": "In the form of the system, as its own documentation describes it."
    })
}

fn call(path: &'static str, id: &'static str) -> Operation {
    Operation::new("post", path, id)
        .about(ABOUT)
        .open()
        .body(json(system_form))
        .answers(200, ANSWER, vec![json(system_form)])
        .answers(404, CLOSED, vec![])
}

pub(super) fn dropins() -> Vec<Operation> {
    let netease = Operation::new("post", "/nimserver/msg/sendBatchMsg.action", "neteaseBatch")
        .summary("NetEase v1: send to several users")
        .about(ABOUT)
        .open()
        .body(text("application/x-www-form-urlencoded"))
        .example(r#"fromAccid=news&toAccids=["ann","bob"]&type=0&body={"msg":"hello"}"#)
        .sends("AppKey: KEY")
        .sends("Nonce: 4tgggergigwow323t23t")
        .sends("CurTime: 1769860800")
        .sends("CheckSum: SHA1(AppSecret + Nonce + CurTime)")
        .answers(200, ANSWER, vec![json(system_form)])
        .answers(404, CLOSED, vec![]);
    let yunxin = |path, id| {
        call(path, id)
            .summary("Yunxin v2: send to several users")
            .example(r#"{"sender_id":"news","receiver_ids":["ann","bob"],"message":{"message_type":0,"text":"hello"}}"#)
            .sends("AppKey: KEY")
            .sends("Nonce: 4tgggergigwow323t23t")
            .sends("CurTime: 1769860800")
            .sends("CheckSum: SHA1(AppSecret + Nonce + CurTime)")
    };
    let openim = |path, id| call(path, id).sends("operationID: 1646445464564");
    let message = r#"{"recvIDs":["ann","bob"],"sendID":"news","content":{"content":"hello"},"contentType":101,"sessionType":1}"#;
    let single = r#"{"recvID":"ann","sendID":"news","content":{"content":"hello"},"contentType":101,"sessionType":1}"#;
    vec![
        netease,
        yunxin("/im/v2/conversations/messages", "yunxinMessages"),
        yunxin("/nimserver/im/v2/conversations/messages", "yunxinMessagesBelow"),
        openim("/msg/batch_send_msg", "openimBatch")
            .summary("OpenIM: send to several users")
            .sends("token: TOKEN")
            .example(message),
        openim("/msg/send_msg", "openimSend")
            .summary("OpenIM: send to one user")
            .sends("token: TOKEN")
            .example(single),
        openim("/auth/get_admin_token", "openimAdminToken")
            .summary("OpenIM: log in")
            .example(r#"{"secret":"SECRET","userID":"KEY"}"#),
        openim("/auth/user_token", "openimUserToken")
            .summary("OpenIM: log in, as older versions do")
            .example(r#"{"secret":"SECRET","platform":1,"userID":"KEY"}"#),
        call("/message/sendbatch", "wukongimBatch")
            .summary("WuKongIM: send to several users")
            .sends("token: TOKEN")
            .example(r#"{"header":{"red_dot":1},"from_uid":"news","subscribers":["ann","bob"],"payload":"aGVsbG8="}"#),
        call("/message/send", "wukongimSend")
            .summary("WuKongIM: send to one user")
            .sends("token: TOKEN")
            .example(r#"{"from_uid":"news","channel_id":"ann","channel_type":1,"payload":"aGVsbG8="}"#),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_of_every_system_is_described() {
        let ingresses = crate::im::ingresses();
        let served: BTreeSet<_> = ingresses
            .iter()
            .flat_map(|(_, it)| it.paths())
            .copied()
            .collect();
        let described: BTreeSet<_> = dropins().iter().map(|it| it.path).collect();
        assert_eq!(described, served);
    }
}
