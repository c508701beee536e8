#!/usr/bin/env php
<?php
// Publishes one broadcast job, the way any PHP service can. Copy this file; it needs php-amqplib 3
// (composer require php-amqplib/php-amqplib) and nothing of Fanwise.
//
//     php producer.php --client-msg-no promo-7 --text Hello --count 1000
//     php producer.php --client-msg-no promo-8 --text Hello --file users.txt
//
// What makes a job safe to publish:
//
// - client_msg_no is the key of the job. Publish again with the same key and message, after a crash
//   or when in doubt, and nobody gets it twice. Take it from your own data, never a new random one
//   for each try.
// - The message is persistent and mandatory, on a channel with publisher confirms. A message that no
//   queue took is returned AND confirmed: the return comes first. Only a confirm without a return
//   means "accepted".
// - A list longer than 100,000 recipients or 4 MiB travels as parts of one job.
//
// Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run it
// again.

declare(strict_types=1);

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

const PART_RECIPIENTS_MAX = 100_000;
const PART_BYTES_MAX = 4 * 1024 * 1024;
// Longest wait for the broker, in seconds: to connect, and to confirm one message.
const PATIENCE = 30;

// Composer's folder beside this file, or the package of the distribution.
foreach ([__DIR__ . '/vendor/autoload.php', '/usr/share/php/PhpAmqpLib/autoload.php'] as $loader) {
    if (is_file($loader)) {
        require $loader;
        break;
    }
}

function main(): void
{
    $args = readArguments();
    $recipients = readRecipients($args);
    $job = [
        'v' => 1,
        'client_msg_no' => $args['client-msg-no'],
        'message' => ['type' => 'text', 'text' => $args['text']],
        'audience' => ['users' => []],
    ];
    if (isset($args['target'])) {
        $job['target'] = $args['target'];
    }

    $connection = connect($args['url']);
    $channel = $connection->channel();
    $channel->confirm_select();
    $returned = false;
    $channel->set_return_listener(function () use (&$returned) {
        $returned = true;
    });
    $refused = false;
    $channel->set_nack_handler(function () use (&$refused) {
        $refused = true;
    });
    $messages = 0;
    foreach (bodies($job, $recipients) as $body) {
        $messages += 1;
        $headers = isset($args['traceparent']) ? ['traceparent' => $args['traceparent']] : [];
        $message = new AMQPMessage($body, [
            'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
            'content_type' => 'application/json',
            'message_id' => "{$args['client-msg-no']}/$messages",
            'application_headers' => new AMQPTable($headers),
        ]);
        $channel->basic_publish($message, $args['exchange'], $args['routing-key'], true);
        // Waits until the broker has the message on disk, has returned it, or has refused it.
        $channel->wait_for_pending_acks_returns(PATIENCE);
        if ($returned) {
            throw new RuntimeException('returned, no queue is bound to that exchange with that key');
        }
        if ($refused) {
            throw new RuntimeException('the broker refused, a queue is full or its leader is away');
        }
    }
    echo 'accepted: ', count($recipients), " recipients in $messages message(s)\n";
    $connection->close();
}

function connect(string $url): AMQPStreamConnection
{
    $parts = parse_url($url);
    if ($parts === false || ($parts['scheme'] ?? '') !== 'amqp') {
        throw new InvalidArgumentException('--url: an address that begins with amqp:// is expected');
    }
    $vhost = rawurldecode(substr($parts['path'] ?? '', 1));
    return new AMQPStreamConnection(
        $parts['host'] ?? '127.0.0.1',
        $parts['port'] ?? 5672,
        rawurldecode($parts['user'] ?? 'guest'),
        rawurldecode($parts['pass'] ?? 'guest'),
        $vhost === '' ? '/' : $vhost,
        connection_timeout: PATIENCE,
        read_write_timeout: PATIENCE,
    );
}

/** The job as one message, or as parts. The same list gives the same parts, so that publishing it
 *  again stays harmless. */
function bodies(array $job, array $recipients): iterable
{
    $envelope = strlen(encode($job)) + 64; // the rest of the job, and its "part"
    $parts = [[]];
    $size = $envelope;
    foreach ($recipients as $recipient) {
        $length = strlen(encode($recipient)) + 1;
        $last = count($parts) - 1;
        if (count($parts[$last]) === PART_RECIPIENTS_MAX || $size + $length > PART_BYTES_MAX) {
            $parts[++$last] = [];
            $size = $envelope;
        }
        $parts[$last][] = $recipient;
        $size += $length;
    }
    foreach ($parts as $index => $users) {
        $job['audience'] = ['users' => $users];
        if (count($parts) > 1) {
            $job['part'] = ['number' => $index + 1, 'of' => count($parts)];
        }
        yield encode($job);
    }
}

function encode(mixed $value): string
{
    return json_encode($value, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES);
}

function readRecipients(array $args): array
{
    if (isset($args['count'])) {
        return array_map(fn($number) => "u$number", range(0, (int) $args['count'] - 1));
    }
    $lines = file($args['file']);
    if ($lines === false) {
        throw new RuntimeException("{$args['file']} cannot be read");
    }
    return array_values(array_filter(array_map('trim', $lines), fn($line) => $line !== ''));
}

function readArguments(): array
{
    $args = getopt('', [
        'url:', 'exchange:',
        'routing-key:', // priority: high, normal or bulk
        'client-msg-no:', 'text:',
        'target:', // where to send, instead of the app's target
        'file:', // recipients, one a line
        'count:', // recipients u0 to u<count-1>
        'traceparent:', // W3C trace context that goes with every send
    ]) + [
        'url' => 'amqp://guest:guest@127.0.0.1:5672/%2f',
        'exchange' => 'fanwise.jobs',
        'routing-key' => 'normal',
    ];
    $trace = getenv('TRACEPARENT');
    if ($trace !== false) {
        $args += ['traceparent' => $trace];
    }
    if (!isset($args['client-msg-no'], $args['text'])) {
        throw new InvalidArgumentException('give --client-msg-no and --text');
    }
    if (isset($args['file']) === isset($args['count'])) {
        throw new InvalidArgumentException('give --file or --count');
    }
    return $args;
}

try {
    main();
} catch (Throwable $error) {
    fwrite(STDERR, "not known to be accepted: {$error->getMessage()}\n");
    exit(1);
}
