//! Edits of retained queues that do not come to their end.

use fanwise::amqp::Rabbit;
use fanwise::ports::{RetainedEdit, RetainedQueue, RetainedQueues as _};
use tokio::sync::oneshot;

/// Removes dead letters, and is dropped when it has decided about so many.
pub(crate) async fn break_off_removal(rabbit: &Rabbit, decisions: usize) {
    let (half_way, reached) = oneshot::channel();
    let (mut half_way, mut decided) = (Some(half_way), 0);
    let decide = |_| {
        decided += 1;
        if decided == decisions {
            half_way.take().unwrap().send(()).unwrap();
        }
        RetainedEdit::Remove
    };
    tokio::select! {
        biased;
        _ = reached => {}
        edited = rabbit.edit(RetainedQueue::Dead, decide) => panic!("not half-way: {edited:?}"),
    }
}
