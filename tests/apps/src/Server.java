// Server.java - HTTP/1.1 with keep-alive, a thread per connection. Usage: Server PORT FILE.
import java.io.*;
import java.net.*;
import java.nio.file.*;

public class Server {
  static void serve(Socket socket, byte[] answer) {
    try (socket) {
      BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream(), "ISO-8859-1"));
      OutputStream out = socket.getOutputStream();
      String line;
      while ((line = in.readLine()) != null)
        if (line.isEmpty()) out.write(answer); // the empty line ends a request
    } catch (IOException e) {
      // the client has gone
    }
  }

  public static void main(String[] args) throws Exception {
    byte[] body = Files.readAllBytes(Path.of(args[1]));
    ByteArrayOutputStream answer = new ByteArrayOutputStream();
    answer.write(("HTTP/1.1 200 OK\r\nContent-Length: " + body.length + "\r\n\r\n").getBytes());
    answer.write(body);
    ServerSocket listener = new ServerSocket(Integer.parseInt(args[0]), 1024, InetAddress.getLoopbackAddress());
    while (true) {
      Socket socket = listener.accept();
      socket.setTcpNoDelay(true);
      new Thread(() -> serve(socket, answer.toByteArray())).start();
    }
  }
}
