//! What an error of a connection means for the port.

use fanwise_net::amqp::AmqpError;

use crate::ports::BrokerError;

impl From<AmqpError> for BrokerError {
    fn from(error: AmqpError) -> Self {
        match error {
            AmqpError::Connect { address, source } => Self::Connect { address, source },
            AmqpError::Refused { what, source } => Self::Refused { what, source },
            AmqpError::Slow { ref address, .. }
            | AmqpError::Silent { ref address, .. }
            | AmqpError::Nowhere { ref address, .. } => Self::Connect {
                address: address.clone(),
                source: Box::new(error),
            },
            AmqpError::NotTaken { ref what } => Self::Refused {
                what: what.clone(),
                source: Box::new(error),
            },
            AmqpError::Name(ref name) => Self::Refused {
                what: format!("use the name `{name}`"),
                source: Box::new(error),
            },
        }
    }
}
