import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.ShutdownSignalException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Publishes one broadcast job, the way any Java service can. Copy this file; it needs Java 17,
 * com.rabbitmq:amqp-client (5.0 or newer), and nothing of Fanwise.
 *
 * <pre>
 * java -cp amqp-client.jar:slf4j-api.jar Producer.java --client-msg-no promo-7 --text Hello --count 1000
 * java -cp amqp-client.jar:slf4j-api.jar Producer.java --client-msg-no promo-8 --text Hello --file users.txt
 * </pre>
 *
 * What makes a job safe to publish:
 *
 * <ul>
 *   <li>client_msg_no is the key of the job. Publish again with the same key and message, after a
 *       crash or when in doubt, and nobody gets it twice. Take it from your own data, never a new
 *       random one for each try.
 *   <li>The message is persistent and mandatory, on a channel with publisher confirms. A message that
 *       no queue took is returned AND confirmed: the return comes first. Only a confirm without a
 *       return means "accepted".
 *   <li>A list longer than 100,000 recipients or 4 MiB travels as parts of one job.
 * </ul>
 *
 * Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run it
 * again.
 */
public final class Producer {
  private static final int PART_RECIPIENTS_MAX = 100_000;
  private static final int PART_BYTES_MAX = 4 * 1024 * 1024;
  /** Longest wait for the broker: to connect, and to confirm one message. */
  private static final int PATIENCE_MS = 30_000;

  private final Map<String, String> arguments;

  private Producer(Map<String, String> arguments) {
    this.arguments = arguments;
  }

  public static void main(String[] args) {
    try {
      new Producer(read(args)).run();
    } catch (Exception error) {
      System.err.println("not known to be accepted: " + reason(error));
      // Threads of a connection that is still open would keep the process alive.
      System.exit(1);
    }
  }

  private void run() throws Exception {
    List<String> recipients = recipients();
    List<byte[]> bodies = bodies(recipients);
    ConnectionFactory factory = new ConnectionFactory();
    factory.setUri(arguments.get("url"));
    factory.setConnectionTimeout(PATIENCE_MS);
    factory.setHandshakeTimeout(PATIENCE_MS);
    factory.setAutomaticRecoveryEnabled(false);
    try (Connection connection = factory.newConnection();
        Channel channel = connection.createChannel()) {
      channel.confirmSelect();
      AtomicBoolean returned = new AtomicBoolean();
      channel.addReturnListener((code, text, exchange, key, properties, body) -> returned.set(true));
      int messages = 0;
      for (byte[] body : bodies) {
        messages += 1;
        publish(channel, arguments.get("client-msg-no") + "/" + messages, body, returned);
      }
      System.out.printf("accepted: %d recipients in %d message(s)%n", recipients.size(), messages);
    }
  }

  /** Publishes one message and waits until the broker has it on disk. */
  private void publish(Channel channel, String id, byte[] body, AtomicBoolean returned)
      throws Exception {
    Map<String, Object> headers = new HashMap<>();
    if (arguments.containsKey("traceparent")) {
      headers.put("traceparent", arguments.get("traceparent"));
    }
    BasicProperties properties =
        new BasicProperties.Builder()
            .deliveryMode(2) // persistent
            .contentType("application/json")
            .messageId(id)
            .headers(headers)
            .build();
    boolean mandatory = true;
    channel.basicPublish(
        arguments.get("exchange"), arguments.get("routing-key"), mandatory, properties, body);
    if (!channel.waitForConfirms(PATIENCE_MS)) {
      throw new IllegalStateException(
          "the broker refused, a queue is full or its leader is away");
    }
    if (returned.get()) {
      throw new IllegalStateException(
          "returned, no queue is bound to that exchange with that key");
    }
  }

  /**
   * The job as one message, or as parts. The same list gives the same parts, so that publishing it
   * again stays harmless.
   */
  private List<byte[]> bodies(List<String> recipients) {
    int envelope = body(List.of(), 0, 1).length + 64; // the rest of the job, and its "part"
    List<List<String>> parts = new ArrayList<>(List.of(new ArrayList<>()));
    int size = envelope;
    for (String recipient : recipients) {
      int length = quoted(recipient).getBytes(StandardCharsets.UTF_8).length + 1;
      List<String> last = parts.get(parts.size() - 1);
      if (last.size() == PART_RECIPIENTS_MAX || size + length > PART_BYTES_MAX) {
        last = new ArrayList<>();
        parts.add(last);
        size = envelope;
      }
      last.add(recipient);
      size += length;
    }
    List<byte[]> bodies = new ArrayList<>();
    for (List<String> users : parts) {
      bodies.add(body(users, bodies.size() + 1, parts.size()));
    }
    return bodies;
  }

  /** Written by hand so that this file needs no JSON library; a service uses its own. */
  private byte[] body(List<String> users, int number, int of) {
    StringBuilder json = new StringBuilder("{\"v\":1,\"client_msg_no\":");
    json.append(quoted(arguments.get("client-msg-no")));
    if (arguments.containsKey("target")) {
      json.append(",\"target\":").append(quoted(arguments.get("target")));
    }
    json.append(",\"message\":{\"type\":\"text\",\"text\":").append(quoted(arguments.get("text")));
    json.append("},\"audience\":{\"users\":[");
    for (int index = 0; index < users.size(); index++) {
      json.append(index == 0 ? "" : ",").append(quoted(users.get(index)));
    }
    json.append("]}");
    if (of > 1) {
      json.append(",\"part\":{\"number\":").append(number).append(",\"of\":").append(of).append('}');
    }
    return json.append('}').toString().getBytes(StandardCharsets.UTF_8);
  }

  private static String quoted(String text) {
    StringBuilder out = new StringBuilder("\"");
    for (char sign : text.toCharArray()) {
      switch (sign) {
        case '"' -> out.append("\\\"");
        case '\\' -> out.append("\\\\");
        default -> {
          if (sign < ' ') {
            out.append(String.format("\\u%04x", (int) sign));
          } else {
            out.append(sign);
          }
        }
      }
    }
    return out.append('"').toString();
  }

  private List<String> recipients() throws Exception {
    List<String> recipients = new ArrayList<>();
    if (arguments.containsKey("count")) {
      for (int number = 0; number < Integer.parseInt(arguments.get("count")); number++) {
        recipients.add("u" + number);
      }
      return recipients;
    }
    for (String line : Files.readAllLines(Path.of(arguments.get("file")))) {
      if (!line.isBlank()) {
        recipients.add(line.strip());
      }
    }
    return recipients;
  }

  private static Map<String, String> read(String[] args) {
    Map<String, String> arguments = new HashMap<>();
    arguments.put("url", "amqp://guest:guest@127.0.0.1:5672/%2f");
    arguments.put("exchange", "fanwise.jobs");
    arguments.put("routing-key", "normal"); // priority: high, normal or bulk
    if (System.getenv("TRACEPARENT") != null) {
      arguments.put("traceparent", System.getenv("TRACEPARENT"));
    }
    for (int index = 0; index + 1 < args.length; index += 2) {
      arguments.put(args[index].replaceFirst("^--", ""), args[index + 1]);
    }
    if (!arguments.containsKey("client-msg-no") || !arguments.containsKey("text")) {
      throw new IllegalArgumentException("give --client-msg-no and --text");
    }
    if (arguments.containsKey("file") == arguments.containsKey("count")) {
      throw new IllegalArgumentException("give --file or --count");
    }
    return arguments;
  }

  /** What the broker said where it said something. */
  private static String reason(Throwable error) {
    for (Throwable it = error; it != null; it = it.getCause()) {
      if (it instanceof ShutdownSignalException closed && closed.getReason() != null) {
        return closed.getReason().toString();
      }
    }
    return error instanceof TimeoutException ? "the broker did not confirm in time" : error.toString();
  }
}
