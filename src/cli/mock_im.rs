//! `fanwise mock-im`: the mock IM server as a tool.

use crate::exit::{Exit, Failure, OrExit as _};
use crate::telemetry::{self, LogFilter, LogFormat};
use fanwise_mock_im::{MockArgs, MockIm};

pub(super) async fn run(args: MockArgs) -> Result<Exit, Failure> {
    telemetry::start(&LogFilter::default(), LogFormat::Auto);
    let settings = args.into_settings();
    // Before anyone can reach it.
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let mock = MockIm::bind(settings).await.or_exit(Exit::Unavailable)?;
    mock.run(drain.cancelled_owned()).await;
    Ok(Exit::Ok)
}
